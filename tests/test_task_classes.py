"""Classes with the heads of tasks: each is held by the kit, not only the first of a config."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError, ProcessingError
from lensbridge.plugins import registry
from lensbridge.processing.probe import Probe
from lensbridge.spec import Architecture
from lensbridge.testing import conformance

HELD = (
    "BertForQuestionAnswering",  # two columns, which the model returns apart
    "BertForNextSentencePrediction",  # one vector for each input
    "DogeForSequenceClassification",  # every position, of which the last is returned
    "EuroBertForSequenceClassification",  # every position, of which the mean is returned
    "ModernBertForSequenceClassification",  # a transform of one vector
    "BartForSequenceClassification",  # the decoder, where the input has the end-of-sequence token
    "T5ForQuestionAnswering",  # no factor before the head, unlike the class that generates
    "MllamaTextModel",  # a base prefix of two words
)
UNHELD = (
    *("MobileBertForSequenceClassification", "XLMForSequenceClassification"),
    *("Gemma3nForConditionalGeneration", "Gemma3nModel"),
)
"""Classes whose tiny models cannot be held: a pooler's tanh saturates, the first position of a
causal model is returned, and a tower needs another package."""


def described() -> dict[str, Architecture]:
    """The first description of each class."""
    found: dict[str, Architecture] = {}
    for claim in registry().claims:
        for name in claim.architecture.classes:
            found.setdefault(name, claim.architecture)
    return found


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny models."""


@pytest.mark.parametrize("name", HELD)
def test_classes_of_tasks_conform(name: str) -> None:
    report = conformance(described()[name], classes=[name])
    assert report.passed, str(report)


@pytest.mark.matrix
@pytest.mark.parametrize("name", described())
def test_every_class_conforms(name: str) -> None:
    if name in UNHELD or name.endswith("ForMultipleChoice"):
        pytest.skip("no tiny model can be held")
    report = conformance(described()[name], classes=[name])
    assert report.passed, str(report)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("config", "kind"),
    [(T5Config, T5ForConditionalGeneration), (UMT5Config, UMT5ForConditionalGeneration)],
)
def test_the_factor_before_the_head_is_that_of_the_checkpoint(
    config: Any, kind: type[PreTrainedModel], tied: bool
) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    hf_model = kind(config(vocab_size=60, **sizes, tie_word_embeddings=tied)).eval()
    model = lensbridge.load(hf_model)
    ids = torch.arange(4, 11)[None]
    _, cache = model.run_with_cache(ids, decoder_input_ids=ids[:, :5])
    seen: list[torch.Tensor] = []
    handle = hf_model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    hf_model(input_ids=ids, decoder_input_ids=ids[:, :5])
    handle.remove()
    factor = 1.0 if not tied else 16**-0.5
    torch.testing.assert_close(cache["decoder.ln_final.hook_out"] * factor, seen[0])
    report = conformance(hf_model)
    assert report.passed, str(report)


def test_a_rewrite_that_changes_the_ends_of_answers_alone_is_found() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=60, num_hidden_layers=1, **sizes)
    hf_model = BertForQuestionAnswering(config).eval()
    probe = Probe.of(lensbridge.load(hf_model).native, torch.device("cpu"))
    probe.require_same("nothing", up_to_a_constant=False)
    hf_model.qa_outputs.weight.data[1] *= 2.0
    with pytest.raises(ProcessingError, match="the ends"):
        probe.require_same("the ends", up_to_a_constant=False)


def test_a_model_that_reads_choices_is_refused_and_its_encoder_runs() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    hf_model = BertForMultipleChoice(BertConfig(vocab_size=60, num_hidden_layers=1, **sizes)).eval()
    ids = torch.arange(12).reshape(2, 6) + 5
    for given in (ids, ids[None]):
        with pytest.raises(InputError, match=r"\[batch, choice, pos\].*base_model"):
            lensbridge.load(hf_model).run_with_cache(given)
    encoder = lensbridge.load(hf_model.base_model)
    _, cache = encoder.run_with_cache(ids, return_type=None)
    pooled = hf_model.bert(ids).pooler_output
    assert torch.equal(cache["hook_pooler_out"], pooled)
    given = hf_model(ids[None]).logits
    assert torch.equal(hf_model.classifier(pooled).view(1, 2), given)


def test_scores_of_all_positions_are_points_of_a_classifier() -> None:
    hf_model = tiny_model(
        described()["DogeForSequenceClassification"], "DogeForSequenceClassification"
    )
    ids = torch.arange(5, 17).reshape(2, 6)
    logits, cache = lensbridge.load(hf_model).run_with_cache(ids)
    assert torch.equal(cache["hook_logits"], hf_model.score(hf_model.model(ids).last_hidden_state))
    assert torch.equal(logits, hf_model(ids).logits)
