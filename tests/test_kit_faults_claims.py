"""Facts that change no value of the model that is checked, and are wrong all the same."""

from dataclasses import replace

import pytest
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.granite import GRANITE
from lensbridge_adapters.qwen2_moe import QWEN2_MOE

from lensbridge.conformance.building import build
from lensbridge.conformance.kit import conformance
from lensbridge.conformance.tiny import tiny_model
from lensbridge.spec import Architecture, Block, MoE
from lensbridge.testing import Report


def _on_model(right: Architecture, wrong: Architecture) -> Report:
    return conformance(tiny_model(right), architecture=wrong)


def _routed_by(router: str) -> Architecture:
    """Qwen2-MoE without its experts one by one, and with another router."""
    blocks = QWEN2_MOE.block if isinstance(QWEN2_MOE.block, tuple) else (QWEN2_MOE.block,)
    changed = [
        replace(one, mlp=replace(one.mlp, router=router, experts=None))
        if isinstance(one.mlp, MoE)
        else one
        for one in blocks
    ]
    return replace(QWEN2_MOE, block=tuple(changed), undescribed={"experts": "they are left out."})


def test_experts_can_be_left_out_for_a_reason() -> None:
    assert _on_model(QWEN2_MOE, _routed_by("gate")).passed


@pytest.mark.parametrize("router", ["shared_expert_gate", "shared_expert.up_proj"])
def test_a_projection_that_scores_no_experts_is_no_router(router: str) -> None:
    report = _on_model(QWEN2_MOE, _routed_by(router))
    (row,) = [one for one in report.failures if one.check == "nothing is left out"]
    assert "mlp.router: it scores" in row.detail
    assert "and the mixture has 4 experts" in row.detail


def test_a_gated_mlp_is_no_mixture() -> None:
    assert isinstance(GRANITE.block, Block)
    mixture = MoE("mlp", router="gate_proj", experts=None, scale="residual_multiplier")
    report = _on_model(GRANITE, replace(GRANITE, block=replace(GRANITE.block, mlp=mixture)))
    (row,) = report.failures
    assert row.about == "experts"
    assert "no list of experts and no stacked weights are found in it" in row.detail


def test_one_stream_is_not_several_side_by_side() -> None:
    report = _on_model(GPT2, replace(GPT2, streams="side_by_side"))
    (row,) = report.failures
    assert row.detail.startswith("streams: the stream is as wide as dims.d_model")


@pytest.mark.parametrize(
    ("requires", "told"),
    [
        ({"hiden_act": "silu"}, "no field 'hiden_act'"),
        ({"hidden_act": "relu"}, "hidden_act='silu'"),
    ],
)
def test_a_description_for_another_config_does_not_conform(
    requires: dict[str, object], told: str
) -> None:
    report = _on_model(GRANITE, replace(GRANITE, requires=requires))
    (row,) = report.failures
    assert row.detail.startswith(f"requires: the config has {told}, and the description requires")


def test_the_config_that_is_required_conforms() -> None:
    assert isinstance(GRANITE.block, Block)
    assert _on_model(GRANITE, replace(GRANITE, requires={"hidden_act": "silu"})).passed
    assert build(replace(GRANITE, requires={"hidden_act": "silu"})).model.cfg.act_fn == "silu"
