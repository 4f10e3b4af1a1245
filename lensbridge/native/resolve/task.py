"""What a model's head predicts: the next token of its input, or labels."""

import re
from inspect import signature
from typing import Any

from torch import nn

from lensbridge.native.calling import is_plain
from lensbridge.native.linear import Linear
from lensbridge.native.parts import LabelKind

_OTHER_TASKS = re.compile(
    "MaskedLM|PreTraining|Classification|QuestionAnswering|MultipleChoice|NextSentence"
)


def predicts_next(core: nn.Module, head: Linear | None, d_vocab: int) -> bool:
    """Whether the logits at a position predict the next token, which the model has not read.

    If they do, the loss can be computed from the input alone. The name of the class tells; in
    families that also have masked language models (BERT), the config's `is_decoder` does.
    A plain module of which no head is described is a language model.
    """
    if head is None and is_plain(core):
        return True
    if head is None or head.n_out < d_vocab or _OTHER_TASKS.search(type(core).__name__):
        return False
    if "decoder_input_ids" in _parameters(core):
        return False
    return not _reads_both_ways(core)


def label_kind(core: nn.Module, head: Linear | None, d_vocab: int) -> LabelKind | None:
    """What each of the `labels` of the native forward belongs to; None: it takes no labels.

    What a plain module takes as `labels` is not known.
    """
    name = type(core).__name__
    if is_plain(core) or "labels" not in _parameters(core):
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
