"""Logits that are not the output of one projection: they are a point all the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.mobilebert import MOBILEBERT
from torch import Tensor

import lensbridge
from lensbridge.analysis import direct_logit_attribution, logit_readout
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.tiny import tiny_from, tiny_model
from lensbridge.errors import InputError, WeightError
from lensbridge.hooks.callbacks import Hook
from lensbridge.spec import Architecture
from lensbridge.testing import conformance

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 9, 7, 11, 6], [8, 12, 14, 10, 13]])


def mobilebert() -> tuple[Any, Architecture]:
    return tiny_model(MOBILEBERT), MOBILEBERT


def ultrabert() -> tuple[Any, Architecture]:
    model = tiny_from(transformers.UltrabertForMaskedLM, {}, torch.float32, None, seed=0)
    return model, lensbridge.load(model).architecture


HEADS = {"two weights": mobilebert, "an activation that runs twice": ultrabert}


def complaint(model: Any, architecture: Architecture) -> str:
    checks = [check for check in CHECKS if check.name == "nothing is left out"]
    report = conformance(model, architecture=architecture, checks=checks)
    return " ".join(row.detail for row in report.failures)


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_read_and_edited_where_the_model_returns_them(head: str) -> None:
    model, architecture = HEADS[head]()
    with torch.no_grad():
        wanted = model(IDS).logits
    lens = lensbridge.load(model, architecture=architecture)
    logits, cache = lens.run_with_cache(IDS)
    assert torch.equal(cache["hook_logits"], wanted)

    def cut(value: Tensor, hook: Hook) -> Tensor:
        return value.clamp(max=0.5)

    edited = lens.run_with_hooks(IDS, fwd_hooks=[("hook_logits", cut)])
    assert torch.equal(edited, wanted.clamp(max=0.5))
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("head", HEADS)
def test_the_stream_is_read_through_the_whole_head(head: str) -> None:
    model, architecture = HEADS[head]()
    lens = lensbridge.load(model, architecture=architecture)
    _, cache = lens.run_with_cache(IDS)
    streams = torch.stack([cache["resid_pre", 1], cache["resid_post", 1]])
    layer = lens.native.blocks[1].module

    def skip(module: Any, args: Any, output: Any) -> Any:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    with torch.no_grad():
        last = model(IDS).logits
        handle = layer.register_forward_hook(skip)
        first = model(IDS).logits
        handle.remove()
        found = logit_readout(lens, streams).values
    torch.testing.assert_close(found, torch.stack([first, last]))
    assert (first - last).abs().max() > 0.1


@pytest.mark.parametrize("head", HEADS)
def test_weights_of_such_a_head_are_refused_with_the_reason(head: str) -> None:
    model, architecture = HEADS[head]()
    lens = lensbridge.load(model, architecture=architecture)
    why = architecture.undescribed["unembed"]
    with pytest.raises(WeightError, match=rf"The head of {type(model).__name__} .*: {why}\."):
        _ = lens.W_U
    with pytest.raises(InputError, match="transforms the stream before the projection"):
        direct_logit_attribution(lens, IDS, answer_tokens=7)


def test_a_head_that_is_left_out_without_a_reason_is_noticed() -> None:
    model = tiny_model(MOBILEBERT)
    reasons = {part: why for part, why in MOBILEBERT.undescribed.items() if part != "unembed"}
    without = replace(MOBILEBERT, unembed=None, undescribed=reasons)
    assert complaint(model, MOBILEBERT) == ""
    assert "hook_logits: the model returns logits" in complaint(model, without)


def test_a_reason_for_a_head_that_can_be_described_is_refused() -> None:
    model = tiny_model(GPT2)
    because = {"unembed": "nobody looked for it"}
    explained = complaint(model, replace(GPT2, undescribed=because))
    assert "undescribed['unembed']: the head is described" in explained
    left_out = complaint(model, replace(GPT2, unembed=None, undescribed=because))
    assert "undescribed['unembed']: a projection of a value that is a point" in left_out


@pytest.mark.parametrize("name", MOBILEBERT.classes)
def test_other_heads_of_mobilebert_are_those_that_it_has(name: str) -> None:
    if name.endswith("MultipleChoice"):
        pytest.skip("its input has an axis for the choices")
    model = tiny_model(MOBILEBERT, name)
    lens = lensbridge.load(model)
    head = getattr(model, "classifier", getattr(model, "qa_outputs", None))
    assert lens.native.unembed is None if head is None else lens.native.unembed.module is head
    assert complaint(model, MOBILEBERT) == ""
