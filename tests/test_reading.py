"""Reading: every point holds what the bare model computes, and looking changes nothing."""

import pytest
import torch
from einops import einsum, rearrange, repeat
from hypothesis import given
from raw import Attention, Recording, cache_argument, record
from tiny_models import (
    FAMILIES,
    Layer,
    Shape,
    build,
    embed_of,
    final_norm_of,
    left_padded,
    norm_by_hand,
    shapes,
    tokens,
)
from torch import Tensor

import lensbridge


def expected_points(model, shape: Shape, recording: Recording, mask: Tensor | None) -> dict:
    """Every point from a bare run: taken over where it is native, by the formula where not."""
    found = {"hook_embed": recording.outputs[embed_of(model, shape.family)]}
    batch = found["hook_embed"].shape[0]
    if shape.family == "gpt2":
        found["hook_pos_embed"] = recording.outputs[model.transformer.wpe].expand(batch, -1, -1)
    for i in range(shape.layers):
        at = f"blocks.{i}."
        layer = Layer(model, shape.family, i)
        inputs, outputs = recording.inputs, recording.outputs
        attention = Attention.of(model, shape, i, recording, mask)
        z = rearrange(inputs[layer.o], "b p (h d) -> b p h d", h=shape.heads)
        weight = layer.o.weight if shape.family == "gpt2" else layer.o.weight.T
        w_o = rearrange(weight, "(h d) m -> h d m", h=shape.heads)
        stream = inputs[layer.block]
        found |= {
            f"{at}hook_resid_pre": stream,
            f"{at}hook_attn_in": inputs[layer.ln1],
            f"{at}hook_q_input": repeat(stream, "b p m -> b p n m", n=shape.heads),
            f"{at}hook_k_input": repeat(stream, "b p m -> b p n m", n=shape.kv),
            f"{at}hook_v_input": repeat(stream, "b p m -> b p n m", n=shape.kv),
            f"{at}attn.hook_q": attention.q,
            f"{at}attn.hook_k": attention.k,
            f"{at}attn.hook_v": attention.v,
            f"{at}attn.hook_attn_scores": attention.scores,
            f"{at}attn.hook_pattern": attention.pattern,
            f"{at}attn.hook_z": z,
            f"{at}attn.hook_result": einsum(z, w_o, "b p h d, h d m -> b p h m"),
            f"{at}hook_attn_out": outputs[layer.attn],
            f"{at}hook_mlp_in": inputs[layer.ln2],
            f"{at}mlp.hook_pre": outputs[layer.gate or layer.up],
            f"{at}mlp.hook_post": inputs[layer.down],
            f"{at}hook_mlp_out": outputs[layer.mlp],
            f"{at}hook_resid_post": outputs[layer.block],
        }
        if layer.gate is not None:
            found[f"{at}mlp.hook_pre_linear"] = outputs[layer.up]
        if shape.family != "gpt2":
            found[f"{at}attn.hook_rot_q"] = attention.rot_q
            found[f"{at}attn.hook_rot_k"] = attention.rot_k
        if shape.family != "neox":
            found[f"{at}hook_resid_mid"] = stream + outputs[layer.attn]
        for slot, norm in (("ln1", layer.ln1), ("ln2", layer.ln2)):
            found |= norm_points(f"{at}{slot}", norm, recording)
    found |= norm_points("ln_final", final_norm_of(model, shape.family), recording)
    found["hook_logits"] = recording.logits
    return found


def norm_points(at: str, norm, recording: Recording) -> dict:
    scale, normalized, _ = norm_by_hand(norm, recording.inputs[norm])
    return {
        f"{at}.hook_scale": scale,
        f"{at}.hook_normalized": normalized,
        f"{at}.hook_out": recording.outputs[norm],
    }


BY_FORMULA = ("scale", "normalized", "scores", "pattern", "result", "rot_q", "rot_k", "resid_mid")


def assert_same(name: str, found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    if name.endswith(BY_FORMULA):
        torch.testing.assert_close(
            found, expected, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: n + m
        )
    else:
        assert torch.equal(found, expected), name


@given(shapes())
def test_every_point_holds_what_the_bare_model_computes(shape: Shape) -> None:
    bare = build(shape)
    ids = tokens()
    with torch.no_grad():
        recording = record(bare, input_ids=ids)
        expected = expected_points(bare, shape, recording, None)
        model = lensbridge.load(build(shape))
        logits, cache = model.run_with_cache(ids, names_filter=model.hook_names)
    assert torch.equal(logits, recording.logits)
    assert set(cache) == set(expected) == set(model.hook_names)
    for name, value in expected.items():
        assert_same(name, cache[name], value)


@given(shapes())
def test_reading_a_left_padded_batch_changes_nothing_and_patterns_are_right(shape: Shape) -> None:
    bare = build(shape)
    ids, mask = left_padded()
    call = {"input_ids": ids, "attention_mask": mask}
    if shape.family == "gpt2":
        call["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        recording = record(bare, **call)
        expected = expected_points(bare, shape, recording, mask)
        model = lensbridge.load(bare)
        logits, cache = model.run_with_cache(
            ids, names_filter=model.hook_names, attention_mask=mask
        )
    assert torch.equal(logits, recording.logits)
    real = mask.bool()
    for name in ("pattern", "attn_scores"):
        for i in range(shape.layers):
            found = cache[name, i].transpose(1, 2)[real]
            torch.testing.assert_close(
                found,
                expected[f"blocks.{i}.attn.hook_{name}"].transpose(1, 2)[real],
                rtol=2e-5,
                atol=2e-5,
            )
    assert torch.equal(
        cache["resid_post", -1], expected[f"blocks.{shape.layers - 1}.hook_resid_post"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_pattern_is_what_eager_attention_returns(family: str) -> None:
    shape = Shape(family)
    ids, mask = left_padded()
    eager = build(Shape(family, kernel="eager"))
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0) if family == "gpt2" else None
        out = eager(
            input_ids=ids, attention_mask=mask, position_ids=positions, output_attentions=True
        )
        _, cache = lensbridge.load(build(shape)).run_with_cache(
            ids, attention_mask=mask, names_filter="pattern"
        )
    real = mask.bool()
    for i, attention in enumerate(out.attentions):
        torch.testing.assert_close(
            cache["pattern", i].transpose(1, 2)[real],
            attention.transpose(1, 2)[real],
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_nothing_in_other_dtypes(
    family: str, kernel: str, dtype: torch.dtype
) -> None:
    model = build(Shape(family, dtype=dtype, kernel=kernel))
    ids = tokens()
    with torch.no_grad():
        bare = model(ids).logits
        lens = lensbridge.load(model)
        logits, cache = lens.run_with_cache(ids, names_filter=lens.hook_names)
    assert torch.equal(logits, bare)
    assert cache["pattern", 0].dtype == dtype
    total = cache["pattern", 0].float().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=2e-2, rtol=0)
    if family != "neox":
        mid = cache["resid_pre", 0] + cache["attn_out", 0]
        assert torch.equal(mid, cache["resid_mid", 0])


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_decode_step_reads_like_the_last_row_of_a_full_run(
    family: str, kernel: str
) -> None:
    from transformers import DynamicCache

    shape = Shape(family, heads=6, kv_heads=2, kernel=kernel)
    hf = build(shape)
    model = lensbridge.load(hf)
    ids = tokens(2, 6)
    with torch.no_grad():
        _, full = model.run_with_cache(ids, names_filter=model.hook_names)
        past = DynamicCache(config=hf.config)
        model(ids[:, :-1], past_key_values=past)
        again, cache_name = DynamicCache(config=hf.config), cache_argument(hf)
        hf(ids[:, :-1], **{cache_name: again})
        logits, step = model.run_with_cache(
            ids[:, -1:], names_filter=model.hook_names, past_key_values=past
        )
        assert torch.equal(logits, hf(ids[:, -1:], **{cache_name: again}).logits)
    for name in model.hook_names:
        row = full[name][..., -1:, :] if "k" in model.explain(name).axes else full[name][:, -1:]
        found = step[name]
        if name.endswith("hook_rot_k"):
            row, found = full[name][:, -1:], found[:, -1:]
        if family == "mistral" and name.endswith(("scores", "pattern")):
            row = row[..., -found.shape[-1] :]
        torch.testing.assert_close(found, row, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)
