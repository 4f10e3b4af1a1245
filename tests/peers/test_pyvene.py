"""pyvene and lensbridge on one model object: both read and edit the same, and leave it the same."""

from typing import Any

import pytest
import pyvene
import torch
from tiny_models import Shape, build
from torch import Tensor, nn

import lensbridge

pytestmark = pytest.mark.peers

POINTS = {
    "block_input": "hook_resid_pre",
    "block_output": "hook_resid_post",
    "mlp_output": "hook_mlp_out",
    "attention_output": "hook_attn_out",
}
FAMILIES = ("gpt2", "llama")
POSITION = 2


def pair(name: str) -> tuple[Any, nn.Module, Tensor, Tensor]:
    """A model read by lensbridge, the object itself, ids and other ids."""
    model = lensbridge.load(build(Shape(name)))
    generator = torch.Generator().manual_seed(0)
    ids, others = torch.randint(3, 60, (2, 2, 7), generator=generator)
    return model, model.hf_model, ids, others


def intervenable(hf: nn.Module, component: str, kind: type) -> Any:
    place = {"layer": 1, "component": component, "unit": "pos", "max_number_of_units": 1}
    return pyvene.IntervenableModel(
        pyvene.IntervenableConfig([{**place, "intervention_type": kind}]), hf
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("component", POINTS)
def test_both_read_the_same(name: str, component: str) -> None:
    model, hf, ids, _ = pair(name)
    with torch.no_grad():
        bare = hf(ids).logits
        collecting = intervenable(hf, component, pyvene.CollectIntervention)
        (_, collected), _ = collecting({"input_ids": ids}, unit_locations={"base": POSITION})
        logits, cache = model.run_with_cache(ids)
    read = cache[f"blocks.1.{POINTS[component]}"][:, POSITION]
    assert torch.equal(torch.cat([*collected]).reshape(read.shape), read)
    assert torch.equal(logits, bare)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("component", POINTS)
def test_both_patch_the_same_and_leave_the_model_as_it_was(name: str, component: str) -> None:
    model, hf, ids, others = pair(name)
    weights = {key: value.clone() for key, value in hf.state_dict().items()}
    point = f"blocks.1.{POINTS[component]}"
    with torch.no_grad():
        bare = hf(ids).logits
        patching = intervenable(hf, component, pyvene.VanillaIntervention)
        _, patched = patching(
            {"input_ids": ids},
            [{"input_ids": others}],
            {"sources->base": POSITION},
        )
        assert torch.equal(model(ids), bare)
        _, cache = model.run_with_cache(others, names_filter=point)

        def put(value: Tensor, hook: Any) -> None:
            value[:, POSITION] = cache[point][:, POSITION]

        assert torch.equal(model.run_with_hooks(ids, fwd_hooks=[(point, put)]), patched.logits)
        assert not torch.equal(patched.logits, bare)
        assert torch.equal(hf(ids).logits, bare)
    assert all(torch.equal(value, hf.state_dict()[key]) for key, value in weights.items())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in hf.modules())
    assert model.hf_model is hf
