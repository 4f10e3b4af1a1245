"""What a model's head is for: the next token of its input, or something that labels say."""

import re
from inspect import signature
from typing import Any

from torch import nn

from lensbridge.native.linear import Linear
from lensbridge.native.parts import LabelKind

_OTHER_TASKS = re.compile(
    "MaskedLM|PreTraining|Classification|QuestionAnswering|MultipleChoice|NextSentence"
)


def predicts_next(core: nn.Module, head: Linear | None, d_vocab: int) -> bool:
    """Whether the logits at a position are for the token after it, which the model has not read.

    Then the input has a loss of its own. Names of classes say it, and in families that have masked
    language models too (BERT's), the config's `is_decoder`.
    """
    if head is None or head.n_out < d_vocab or _OTHER_TASKS.search(type(core).__name__):
        return False
    if "decoder_input_ids" in _parameters(core):
        return False
    return not _reads_both_ways(core)


def label_kind(core: nn.Module, head: Linear | None, d_vocab: int) -> LabelKind | None:
    """What `labels` of the native forward are of; None where it takes none."""
    name = type(core).__name__
    if "labels" not in _parameters(core):
        return None
    if "TokenClassification" in name or (head is not None and head.n_out >= d_vocab > 0):
        return "position"
    return "input" if "Classification" in name or "MultipleChoice" in name else "other"


def _parameters(core: nn.Module) -> set[str]:
    return set(signature(core.forward).parameters)


def _reads_both_ways(core: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config: Any = getattr(core, "config", None)
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return True
    masked = getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and getattr(config, "is_decoder", None) is False
