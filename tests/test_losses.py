"""Losses: with labels that of the bare model, without them only where the input has one."""

from inspect import signature
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lensbridge_adapters import lensbridge_architectures
from tiny_models import Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError, LensbridgeError, TokenError


def tiny(name: str, **config: Any) -> nn.Module:
    description = next(one for one in lensbridge_architectures() if name in one.classes)
    hf: Any = tiny_model(description, name, **config)
    if hf.config.model_type == "t5":
        hf.config.decoder_start_token_id = 2
    return hf


def padded_input(vocab: int, side: str = "right") -> dict[str, Tensor]:
    """Two rows of ids, of which the second is padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocab, (2, 7), generator=generator)
    mask = torch.ones(2, 7, dtype=torch.long)
    padding = slice(5, None) if side == "right" else slice(0, 2)
    ids[1, padding], mask[1, padding] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def labels_of(classes: int, *shape: int) -> Tensor:
    """Random labels, some of which are not counted."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, classes, shape, generator=generator)
    skipped = torch.rand(shape, generator=generator) < 0.3
    return labels.masked_fill(skipped, -100) if len(shape) > 1 else labels


ALIGNED = [
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "MarianMTModel",
    "M2M100ForConditionalGeneration",
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "DistilBertForMaskedLM",
    "BertForTokenClassification",
    "DebertaV2ForTokenClassification",
    "BartForCausalLM",  # whose labels transformers does not shift
]
SHIFTED = [
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "BloomForCausalLM",
    "Gemma2ForCausalLM",
    "CohereForCausalLM",
    "MambaForCausalLM",
]


def _losses_by_hand(logits: Tensor, labels: Tensor, shifted: bool) -> Tensor:
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ALIGNED + SHIFTED)
def test_a_loss_of_labels_is_the_bare_models(name: str, side: str) -> None:
    hf = tiny(name)
    model = lensbridge.load(hf)
    inputs = padded_input(hf.config.vocab_size, side)
    if "position_ids" in signature(hf.forward).parameters:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    width = 5 if model.native.is_encoder_decoder else 7
    classes = hf.config.num_labels if "Token" in name else hf.config.vocab_size
    labels = labels_of(classes, 2, width)
    with torch.no_grad():
        bare = hf(**inputs, labels=labels)
        loss = model(inputs, return_type="loss", labels=labels)
        logits, same = model(inputs, return_type="both", labels=labels)
        by_label = model(inputs, return_type="loss", labels=labels, loss_per_token=True)
        (cached, _), edited = (
            model.run_with_cache(inputs, "resid_post", return_type="loss", labels=labels.tolist()),
            model.run_with_hooks(
                inputs,
                fwd_hooks=[("hook_logits", lambda logits, hook: logits.mul_(2))],
                return_type="loss",
                labels=labels,
            ),
        )
    assert torch.equal(logits, bare.logits)
    for found in (loss, same, cached):
        assert torch.equal(found, bare.loss)
    expected = _losses_by_hand(logits, labels, name in SHIFTED)
    torch.testing.assert_close(by_label, expected)
    torch.testing.assert_close(by_label.sum() / (by_label != 0).sum(), bare.loss)
    doubled = _losses_by_hand(2 * logits, labels, name in SHIFTED)
    torch.testing.assert_close(edited, doubled.sum() / (by_label != 0).sum())


@pytest.mark.parametrize(
    "name",
    [
        "BertForSequenceClassification",
        "LlamaForSequenceClassification",
        "DistilBertForSequenceClassification",
        "BertForNextSentencePrediction",
    ],
)
def test_a_loss_of_classes_is_the_bare_models(name: str) -> None:
    found = [one for one in lensbridge_architectures() if name in one.classes]
    if found:
        hf = tiny(name, pad_token_id=1)
    else:
        import transformers

        llama = build(Shape("llama")).config
        llama.pad_token_id, llama.num_labels = 1, 3
        hf = transformers.LlamaForSequenceClassification(llama).eval()
    model, inputs = lensbridge.load(hf), padded_input(hf.config.vocab_size)
    labels = torch.tensor([1, 0])
    with torch.no_grad():
        bare = hf(**inputs, labels=labels)
        assert torch.equal(model(inputs, return_type="loss", labels=labels), bare.loss)
        by_row = model(inputs, return_type="loss", labels=labels, loss_per_token=True)
    torch.testing.assert_close(by_row, F.cross_entropy(bare.logits, labels, reduction="none"))


def test_losses_that_are_no_cross_entropy_are_the_bare_models_and_not_taken_apart() -> None:
    numbers, several = torch.tensor([0.3, -1.0]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    for labels, config in (
        (numbers, {"num_labels": 1, "problem_type": "regression"}),
        (several, {"num_labels": 3, "problem_type": "multi_label_classification"}),
    ):
        hf = tiny("BertForSequenceClassification", **config)
        model, inputs = lensbridge.load(hf), padded_input(hf.config.vocab_size)
        with torch.no_grad():
            bare = hf(**inputs, labels=labels).loss
            assert torch.equal(model(inputs, return_type="loss", labels=labels), bare)
            with pytest.raises(InputError, match="cannot take it apart"):
                model(inputs, return_type="loss", labels=labels, loss_per_token=True)


def test_a_loss_of_spans_is_the_bare_models() -> None:
    hf = tiny("BertForQuestionAnswering")
    model, inputs = lensbridge.load(hf), padded_input(hf.config.vocab_size)
    ends = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    with torch.no_grad():
        assert torch.equal(model(inputs, return_type="loss", **ends), hf(**inputs, **ends).loss)


def test_a_loss_with_experts_includes_what_the_bare_model_adds() -> None:
    hf = tiny("MixtralForCausalLM", output_router_logits=True)
    model, ids = lensbridge.load(hf), tokens() % hf.config.vocab_size
    with torch.no_grad():
        bare = hf(ids, labels=ids)
        assert torch.equal(model(ids, return_type="loss", labels=ids), bare.loss)
        plain = _losses_by_hand(bare.logits, ids, True).mean()
        torch.testing.assert_close(model(ids, return_type="loss"), plain)
        assert not torch.allclose(plain, bare.loss)
        with pytest.raises(InputError, match="cannot take it apart"):
            model(ids, return_type="loss", labels=ids, loss_per_token=True)


def test_gradients_of_a_loss_of_labels_are_autograds() -> None:
    hf = tiny("T5ForConditionalGeneration")
    model, inputs = lensbridge.load(hf), padded_input(hf.config.vocab_size)
    labels = labels_of(hf.config.vocab_size, 2, 5)
    kept: list[Tensor] = []
    block = hf.decoder.block[0].layer[0]

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0])

    handle = block.register_forward_hook(keep)
    hf(**inputs, labels=labels).loss.backward(inputs=kept)
    handle.remove()
    _, cache = model.run_with_cache(
        inputs, "decoder.0.hook_resid_mid", return_type="loss", labels=labels, incl_bwd=True
    )
    assert torch.equal(cache["decoder.0.hook_resid_mid"], kept[0])
    torch.testing.assert_close(cache["decoder.0.hook_resid_mid_grad"], kept[0].grad)


@pytest.mark.parametrize(
    "name",
    [
        "T5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "BertForMaskedLM",
        "BertForTokenClassification",
        "BertForSequenceClassification",
        "BertForQuestionAnswering",
        "BertLMHeadModel",  # without is_decoder it reads the token that it is to predict
        "ViTForImageClassification",
    ],
)
def test_no_loss_without_labels_where_the_input_has_none(name: str) -> None:
    hf = tiny(name)
    model = lensbridge.load(hf)
    if "ViT" in name:
        inputs: Any = torch.randn(2, 3, hf.config.image_size, hf.config.image_size)
    else:
        inputs = padded_input(hf.config.vocab_size)
    for options in ({}, {"loss_per_token": True}):
        with pytest.raises(InputError, match="Pass labels="):
            model(inputs, return_type="loss", **options)
    with pytest.raises(InputError, match="Pass labels="):
        model.run_with_cache(inputs, return_type="both")
    with pytest.raises(InputError, match="Pass labels="):
        model.gradients(inputs, "resid_post")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_a_decoder_with_ids_of_its_own_has_a_loss_on_them() -> None:
    hf = tiny("BartForConditionalGeneration")
    model, inputs = lensbridge.load(hf), padded_input(hf.config.vocab_size)
    decoder = torch.randint(5, hf.config.vocab_size, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    more = {"decoder_input_ids": decoder, "decoder_attention_mask": mask}
    with torch.no_grad():
        logits = hf(**inputs, **more).logits
        marked = decoder.masked_fill(mask == 0, -100)
        losses = _losses_by_hand(logits, marked, True)
        found = model(inputs, return_type="loss", **more)
    torch.testing.assert_close(found, losses.sum() / (losses != 0).sum())


def test_a_decoder_that_is_told_to_be_one_has_a_loss_on_its_input() -> None:
    hf = tiny("BertLMHeadModel", is_decoder=True)
    model, ids = lensbridge.load(hf), tokens() % hf.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model(ids, return_type="loss"), hf(ids, labels=ids).loss)


def test_a_residual_has_a_loss_of_labels_or_of_tokens() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens()
    with torch.no_grad():
        bare = hf(ids, labels=ids).loss
        resid = model(ids, stop_at_layer=1)
        for named in ({"tokens": ids}, {"labels": ids}, {"tokens": ids.tolist()}):
            found = model(resid, return_type="loss", start_at_layer=1, **named)
            torch.testing.assert_close(found, bare)
        with pytest.raises(InputError, match="pass tokens="):
            model(resid, return_type="loss", start_at_layer=1)


def test_labels_that_do_not_fit_are_refused() -> None:
    llama, bert = (
        lensbridge.load(build(Shape("llama"))),
        lensbridge.load(tiny("BertForSequenceClassification")),
    )
    ids = tokens()
    with pytest.raises(InputError, match=r"shape \(2, 6\).*needs \(2, 7\)"):
        llama(ids, return_type="loss", labels=ids[:, 1:])
    with pytest.raises(InputError, match=r"shape \(1, 7\)"):
        llama(ids, return_type="loss", labels=ids[0])
    with pytest.raises(TokenError, match="0 to 60"):
        llama(ids, return_type="loss", labels=ids + 61)
    with pytest.raises(TokenError, match="-1"):
        llama(ids, return_type="loss", labels=torch.full_like(ids, -1))
    with pytest.raises(InputError, match="logits_to_keep"):
        llama(ids, return_type="loss", labels=ids, logits_to_keep=2)
    inputs = padded_input(bert.cfg.d_vocab)
    with pytest.raises(InputError, match=r"needs \(2,\)"):
        bert(inputs, return_type="loss", labels=[1, 0, 1])
    with pytest.raises(TokenError, match="0 to"):
        bert(inputs, return_type="loss", labels=[1, 99])
    both = lensbridge.load(tiny("BertForPreTraining"))
    labels = labels_of(both.cfg.d_vocab, 2, 7)
    with pytest.raises(InputError, match="next_sentence_label"):
        both(inputs, return_type="loss", labels=labels)


def test_evaluations_need_a_model_that_predicts_the_next_token() -> None:
    with pytest.raises(LensbridgeError, match="does not predict the next token"):
        lensbridge.evals.sanity_check(lensbridge.load(tiny("BertForMaskedLM")))
