"""nnsight and lensbridge on one model: both read and edit the same, and leave it as it was."""

from typing import Any

import pytest
import torch
from nnsight import NNsight
from tiny_models import Shape, build
from torch import Tensor, nn

import lensbridge

pytestmark = pytest.mark.peers

FAMILIES = {"gpt2": "transformer.h.1", "llama": "model.layers.1", "neox": "gpt_neox.layers.1"}


def pair(name: str) -> tuple[Any, nn.Module, Any, Tensor]:
    """A model read by lensbridge, the object itself, nnsight around it, and ids."""
    model = lensbridge.load(build(Shape(name)))
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    return model, model.hf_model, NNsight(model.hf_model), ids


@pytest.mark.parametrize("name", FAMILIES)
def test_both_read_the_same(name: str) -> None:
    model, hf, other, ids = pair(name)
    block = FAMILIES[name]
    with torch.no_grad():
        bare = hf(ids).logits
        with other.trace(ids):
            read = other.get(block).input.save()
            added = other.get(f"{block}.mlp").output.save()
            logits = other.output.logits.save()
        ours, cache = model.run_with_cache(ids)
    assert torch.equal(logits, bare)
    assert torch.equal(ours, bare)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], read)
    assert torch.equal(cache["blocks.1.hook_mlp_out"], added)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_edit_the_same_and_leave_the_model_as_it_was(name: str) -> None:
    model, hf, other, ids = pair(name)
    weights = {key: value.clone() for key, value in hf.state_dict().items()}
    mlp = f"{FAMILIES[name]}.mlp"
    with torch.no_grad():
        bare = hf(ids).logits
        with other.trace(ids):
            other.get(mlp).output[:] = other.get(mlp).output * 0.5
            edited = other.output.logits.save()
        assert torch.equal(model(ids), bare)
        half = [("blocks.1.hook_mlp_out", lambda value, hook: value * 0.5)]
        assert torch.equal(model.run_with_hooks(ids, fwd_hooks=half), edited)
        assert not torch.equal(edited, bare)
        residual = model(ids, stop_at_layer=1)
        assert torch.equal(model(residual, start_at_layer=1), bare)
        with other.trace(ids):
            again = other.output.logits.save()
        assert torch.equal(again, bare)
        assert torch.equal(hf(ids).logits, bare)
    assert all(torch.equal(value, hf.state_dict()[key]) for key, value in weights.items())
    assert model.hf_model is hf


def test_a_trace_runs_inside_the_hooks_of_lensbridge() -> None:
    model, _, other, ids = pair("gpt2")
    zero = [("blocks.0.hook_mlp_out", lambda value, hook: value * 0)]
    with torch.no_grad():
        expected = model.run_with_hooks(ids, fwd_hooks=zero)
        with model.hooks(zero), other.trace(ids):
            logits = other.output.logits.save()
    assert torch.equal(logits, expected)


def test_a_model_that_nnsight_used_first_is_read_as_any_other() -> None:
    hf = build(Shape("gpt2"))
    ids = torch.tensor([[3, 4, 5]])
    other = NNsight(hf)
    with torch.no_grad():
        with other.trace(ids):
            heads = other.transformer.h[0].attn.c_proj.input.save()
        model = lensbridge.load(hf)
        _, cache = model.run_with_cache(ids)
    assert torch.equal(cache["blocks.0.attn.hook_z"].flatten(2), heads)
