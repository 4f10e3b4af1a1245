"""Derivation of models in the style of repositories with code of their own."""

from typing import Any

import pytest
import torch
from raw import Recording, record
from styled_models import D_HEAD, StyledModel, styled
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import WeightError

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 9, 7, 11, 6], [8, 12, 14, 10, 13]])
PADDED: dict[str, Any] = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}
DIFFERING: dict[str, Any] = {
    "heads": (2, 4, 6),
    "kv_heads": (1, 2, 3),
    "neurons": (10, 14, 20),
}


def expected(model: StyledModel, raw: Recording) -> dict[str, Tensor]:
    """What plain hooks see in each layer, with the batch first."""
    turns = model.config.style == "positions_first"
    shares = "rows" in model.config.style  # where k and v are in one projection, without q

    def seen(value: Tensor) -> Tensor:
        return value.transpose(0, 1) if turns else value

    found = {}
    for i, layer in enumerate(model.stack["layers"]):
        heads = layer.mixing.h
        z = seen(raw.inputs[layer.mixing.out]).unflatten(-1, (heads, D_HEAD))
        q = seen(raw.outputs[layer.mixing.qkv]).unflatten(-1, (-1, D_HEAD))[:, :, :heads]
        found |= {
            f"blocks.{i}.attn.hook_z": z,
            f"blocks.{i}.attn.{'hook_rot_q' if shares else 'hook_q'}": q,
            f"blocks.{i}.mlp.hook_post": seen(raw.inputs[layer.ffn.down]),
            f"blocks.{i}.hook_attn_out": seen(raw.outputs[layer.mixing]),
            f"blocks.{i}.hook_resid_post": seen(raw.outputs[layer]),
        }
    return found


def hold_points(lens: LensModel, model: StyledModel) -> None:
    for ids, more in ((IDS[:1], {}), (IDS, PADDED)):
        logits, cache = lens.run_with_cache(ids, **more)
        raw = record(model, input_ids=ids, **more)
        assert torch.equal(logits, raw.logits)
        for name, value in expected(model, raw).items():
            assert torch.equal(cache[name], value), name
        pattern, v = cache["pattern", 1], cache["v", 1]
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
        torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, v), cache["z", 1])


def hold_edit(lens: LensModel, model: StyledModel) -> None:
    """An edit of one head's z is the edit that a plain hook makes."""

    def without_head(value: Tensor, hook: Any) -> Tensor:
        return value.index_fill(2, torch.tensor([1]), 0.0)

    got = lens.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_z", without_head)])
    out = model.stack["layers"][1].mixing.out

    def change(module: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[..., D_HEAD : 2 * D_HEAD] = 0.0
        return (changed,)

    handle = out.register_forward_pre_hook(change)
    wanted = model(IDS).logits
    handle.remove()
    assert torch.equal(got, wanted)
    assert not torch.equal(got, model(IDS).logits)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"style": "own_head"},
        {"style": "positions_first"},
        DIFFERING,
        {**DIFFERING, "style": "positions_first"},
        {**DIFFERING, "style": "tied"},
        {"style": "rows_of_heads"},
    ],
    ids=lambda settings: "-".join(map(str, settings)) or "plain",
)
def test_points_of_a_derived_model_are_what_plain_hooks_see(settings: dict[str, Any]) -> None:
    model = styled(**settings)
    lens = lensbridge.load(model)
    hold_points(lens, model)
    hold_edit(lens, model)


def test_a_head_of_a_class_of_its_own_is_the_weight_that_it_uses() -> None:
    model = styled(style="own_head")
    lens = lensbridge.load(model)
    assert lens.architecture.unembed == "lm_head"
    logits, cache = lens.run_with_cache(IDS)
    torch.testing.assert_close(cache["ln_final.hook_out"] @ lens.W_U, logits)
    assert torch.equal(lens.W_U, model.lm_head.weight.T)


def test_numbers_of_heads_that_differ_by_layer_are_read_from_lists_in_the_config() -> None:
    lens = lensbridge.load(styled(**DIFFERING))
    dims = lens.architecture.dims
    assert (dims.heads, dims.kv_heads) == ("num_query_heads", "num_kv_heads")
    shapes = [tuple(lens.weight(f"blocks.{i}.attn.W_Q").shape) for i in range(3)]
    assert shapes == [(2, 24, 6), (4, 24, 6), (6, 24, 6)]
    with pytest.raises(WeightError, match=r"Layers differ.*\(2, 24, 6\) in layers \[0\]"):
        lens.W_Q.full()


def test_where_no_field_has_the_heads_of_each_layer_only_attention_is_left_out() -> None:
    model = styled(**DIFFERING, listed=False)
    lens = lensbridge.load(model)
    assert set(lens.architecture.undescribed) == {"attn"}
    assert "different numbers of heads (2, 4, 6)" in lens.architecture.undescribed["attn"]
    _, cache = lens.run_with_cache(IDS)
    raw = record(model, input_ids=IDS)
    for i, layer in enumerate(model.stack["layers"]):
        assert torch.equal(cache[f"blocks.{i}.mlp.hook_post"], raw.inputs[layer.ffn.down])
        assert torch.equal(cache[f"blocks.{i}.hook_mixer_out"], raw.outputs[layer.mixing])


def test_logits_of_a_head_that_is_no_module_are_read_and_edited_as_the_model_returns_them() -> None:
    model = styled(style="tied")
    lens = lensbridge.load(model)
    assert set(lens.architecture.undescribed) == {"unembed"}
    _, cache = lens.run_with_cache(IDS)
    assert torch.equal(cache["hook_logits"], model(IDS).logits)
    with pytest.raises(WeightError, match="logits are not the output of one projection"):
        _ = lens.W_U


@pytest.mark.parametrize("style", ["routed", "chosen"])
def test_of_experts_in_a_list_the_router_and_the_shared_one_are_points(style: str) -> None:
    model = styled(style=style)
    lens = lensbridge.load(model)
    assert lens.architecture.undescribed == {
        "experts": "its experts are separate modules, and only values of stacked experts are points"
    }
    dense, mixture = model.stack["layers"][0].ffn, model.stack["layers"][1].ffn
    for ids, more in ((IDS[:1], {}), (IDS, PADDED)):
        logits, cache = lens.run_with_cache(ids, **more)
        raw = record(model, input_ids=ids, **more)
        assert torch.equal(logits, raw.logits)
        assert torch.equal(cache["blocks.0.mlp.hook_post"], raw.inputs[dense.down])
        shared = raw.inputs[mixture.common.down]
        assert torch.equal(cache["blocks.1.mlp.shared.hook_post"], shared)
        assert torch.equal(cache["blocks.1.hook_mlp_out"], raw.outputs[mixture])
        wanted = raw.inputs[mixture.gate] @ mixture.gate.weight.T
        router = cache["blocks.1.mlp.hook_router_logits"]
        torch.testing.assert_close(router, wanted.view_as(router))


@pytest.mark.parametrize("style", ["routed", "chosen"])
def test_an_edit_of_router_logits_sends_tokens_to_other_experts_of_a_list(style: str) -> None:
    model = styled(style=style)
    lens = lensbridge.load(model)
    push = torch.tensor([0.0, 50.0, 0.0, 40.0, 0.0])
    edit = ("blocks.1.mlp.hook_router_logits", lambda value, hook: value + push)
    got = lens.run_with_hooks(IDS, fwd_hooks=[edit])
    ran: list[int] = []
    experts = model.stack["layers"][1].ffn.experts
    handles = [
        expert.register_forward_hook(lambda *_, e=e: ran.append(e))
        for e, expert in enumerate(experts)
    ]
    again = lens.run_with_hooks(IDS, fwd_hooks=[edit])
    for handle in handles:
        handle.remove()
    assert torch.equal(got, again)
    assert ran == [1, 3]
    assert not torch.equal(got, model(IDS).logits)


def test_attention_whose_scores_have_positions_before_heads_is_left_out_for_that_reason() -> None:
    model = styled(style="rows_of_positions")
    lens = lensbridge.load(model)
    why = lens.architecture.undescribed["attn"]
    assert why == "the scores of its attention kernel have positions before heads"
    _, cache = lens.run_with_cache(IDS)
    raw = record(model, input_ids=IDS)
    for i, layer in enumerate(model.stack["layers"]):
        assert torch.equal(cache[f"blocks.{i}.hook_mixer_out"], raw.outputs[layer.mixing])
        assert torch.equal(cache[f"blocks.{i}.mlp.hook_post"], raw.inputs[layer.ffn.down])


def test_embeddings_before_a_stream_with_positions_first_have_the_batch_first() -> None:
    model = styled(style="positions_first")
    lens = lensbridge.load(model)
    assert lens.architecture.streams == "positions_first_in_layers"
    _, cache = lens.run_with_cache(IDS)
    words = model.stack["words"].weight[IDS]
    assert torch.equal(cache["hook_embed"], words)
    assert torch.equal(cache["blocks.0.hook_resid_pre"], words)
    assert torch.equal(lens.W_E, model.stack["words"].weight)
