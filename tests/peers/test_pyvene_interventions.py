"""Interchange interventions of lensbridge and of pyvene on one model object."""

from typing import Any

import pytest
import pyvene
import torch
from tiny_models import Shape, build
from torch import Tensor

import lensbridge
from lensbridge.interventions import Add, Zero

pytestmark = pytest.mark.peers

POINTS = {
    "block_input": "hook_resid_pre",
    "block_output": "hook_resid_post",
    "mlp_output": "hook_mlp_out",
    "attention_output": "hook_attn_out",
}
IDS = torch.Generator().manual_seed(0)
BASE = torch.randint(3, 60, (3, 7), generator=IDS)
SOURCE = torch.randint(3, 60, (3, 9), generator=IDS)
HERE, THERE = [[1, 4], [2, 3], [0, 6]], [[5, 8], [2, 0], [7, 1]]


def pyvenes(hf: Any, kind: Any, component: str, units: int, **more: Any) -> Any:
    place = {"layer": 1, "component": component, "unit": "pos", "max_number_of_units": units}
    config = pyvene.IntervenableConfig([{**place, "intervention_type": kind, **more}])
    return pyvene.IntervenableModel(config, hf)


def run(model: Any, here: Any, there: Any, source: Tensor = SOURCE) -> Tensor:
    """Logits of pyvene's interchange; positions are lists for each example."""
    with torch.no_grad():
        _, output = model(
            {"input_ids": BASE},
            [{"input_ids": source}],
            {"sources->base": ([there], [here])},
        )
    return output.logits


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("component", POINTS)
def test_interchange_at_positions_of_each_examples_own(name: str, component: str) -> None:
    model = lensbridge.load(build(Shape(name)))
    wanted = run(pyvenes(model.hf_model, pyvene.VanillaIntervention, component, 2), HERE, THERE)
    with torch.no_grad():
        found = model.interchange(BASE, SOURCE, f"blocks.1.{POINTS[component]}", HERE, THERE)
    assert not torch.allclose(found, model(BASE))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_interchange_in_a_subspace_is_a_low_rank_rotation(name: str) -> None:
    model = lensbridge.load(build(Shape(name)))
    patched = pyvenes(
        model.hf_model,
        pyvene.LowRankRotatedSpaceIntervention,
        "block_output",
        1,
        low_rank_dimension=3,
    )
    (one,) = patched.interventions.values()
    rotation = (one[0] if isinstance(one, list | tuple) else one).rotate_layer.weight.detach()
    here, there = [[1], [4], [2]], [[5], [0], [8]]
    wanted = run(patched, here, there)
    with torch.no_grad():
        found = model.interchange(
            BASE, SOURCE, ("resid_post", 1), here, there, subspace=rotation.clone()
        )
    assert not torch.allclose(found, model(BASE))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_zero_and_addition() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    value = torch.randn(24, generator=torch.Generator().manual_seed(1))
    kinds = [
        (pyvene.ZeroIntervention, Zero(("resid_post", 1), positions=2)),
        (pyvene.AdditionIntervention, Add(("resid_post", 1), value, positions=2)),
    ]
    for kind, ours in kinds:
        more = {} if kind is pyvene.ZeroIntervention else {"source_representation": value}
        patched = pyvenes(model.hf_model, kind, "block_output", 1, **more)
        with torch.no_grad():
            _, output = patched({"input_ids": BASE}, unit_locations={"base": 2})
            found = model.run_with_interventions(BASE, ours)
        torch.testing.assert_close(found, output.logits, rtol=1e-5, atol=1e-5)
