"""Weights: the views reproduce the activations, write through, and touch one layer at a time."""

import einops
import pytest
import torch
from hypothesis import given
from tiny_models import FAMILIES, Shape, build, shapes, tokens

import lensbridge
from lensbridge.errors import WeightError
from lensbridge.tensors.layouts import blocked, grouped, heads


@given(shapes())
def test_weights_reproduce_the_activations(shape: Shape) -> None:
    model = lensbridge.load(build(shape))
    ids = tokens()
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, names_filter=model.hook_names)
        close = torch.testing.assert_close
        close(cache["embed"], model.W_E[ids])
        if shape.family == "gpt2":
            close(cache["pos_embed"], model.W_pos[: ids.shape[1]].expand(2, -1, -1))
        for i, block in enumerate(model.blocks):
            x, attn, mlp = cache[f"blocks.{i}.ln1.hook_out"], block.attn, block.mlp
            for letter in "QKV":
                w, b = getattr(attn, f"W_{letter}"), getattr(attn, f"b_{letter}")
                found = torch.einsum("bpm,nmd->bpnd", x, w) + b
                close(cache[letter.lower(), i], found, rtol=1e-4, atol=1e-4)
            out = torch.einsum("bphd,hdm->bpm", cache["z", i], attn.W_O) + attn.b_O
            close(cache["attn_out", i], out, rtol=1e-4, atol=1e-4)
            y = cache[f"blocks.{i}.ln2.hook_out"]
            up = y @ mlp.W_in + mlp.b_in
            if shape.grouped:
                close(cache["pre_linear", i], up, rtol=1e-4, atol=1e-4)
                close(cache["pre", i], y @ mlp.W_gate + mlp.b_gate, rtol=1e-4, atol=1e-4)
            else:
                close(cache["pre", i], up, rtol=1e-4, atol=1e-4)
            down = cache["post", i] @ mlp.W_out + mlp.b_out
            close(cache["mlp_out", i], down, rtol=1e-4, atol=1e-4)
            scaled = cache["normalized", i, "ln1"] * block.ln1.w + block.ln1.b
            close(x, scaled, rtol=1e-4, atol=1e-4)
        final = cache["ln_final.hook_out"]
        close(logits, final @ model.W_U + model.b_U, rtol=1e-4, atol=1e-4)
        close(model.ln_final(cache["resid_post", -1]), final)
        close(model.unembed(final), logits)
        close(block.mlp(y), cache["mlp_out", i])
        assert torch.equal(block(cache["resid_pre", i]), cache["resid_post", i])


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_canonical(family: str) -> None:
    shape = Shape(family)
    model = lensbridge.load(build(shape))
    L, H, G, D, M, F, V = 2, 4, shape.kv, shape.d_head, shape.d_model, shape.d_mlp, 61
    expected = {
        "W_E": (V, M), "W_U": (M, V), "b_U": (V,),
        "W_Q": (L, H, M, D), "W_K": (L, G, M, D), "W_V": (L, G, M, D), "W_O": (L, H, D, M),
        "b_Q": (L, H, D), "b_K": (L, G, D), "b_V": (L, G, D), "b_O": (L, M),
        "W_in": (L, M, F), "W_out": (L, F, M), "b_in": (L, F), "b_out": (L, M),
        "W_K_expanded": (L, H, M, D), "W_V_expanded": (L, H, M, D),
    }  # fmt: skip
    for name, size in expected.items():
        assert tuple(getattr(model, name).shape) == size, name
    cfg = model.cfg
    sizes = (cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_model, cfg.d_mlp)
    assert sizes == (L, H, G, D, M, F)
    assert (cfg.d_vocab, cfg.n_ctx) == (V, 40)
    assert cfg.normalization_type == ("RMS" if shape.grouped else "LN")
    assert cfg.act_fn in ("gelu_new", "gelu", "silu")
    assert cfg.hf is model.hf_model.config
    repeated = model.W_K.full().repeat_interleave(H // G, dim=1)
    assert torch.equal(model.W_K_expanded.full(), repeated)


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_to_a_weight_edits_the_model(family: str) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    ids = tokens()
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
            before = hf(ids).logits
            getattr(model, name)[1][...] += 0.5
            changed = hf(ids).logits
            assert not torch.equal(changed, before), name
            getattr(model, name)[1] = getattr(model, name)[1] - 0.5
            torch.testing.assert_close(hf(ids).logits, before, rtol=1e-3, atol=1e-3)
        model.W_O[0, 2] = 0
        zeroed = model(ids)
        fresh = lensbridge.load(build(Shape(family)))
        ablate = fresh.run_with_hooks(ids, fwd_hooks=[(("z", 0), _without_head_two)])
    torch.testing.assert_close(zeroed, ablate, rtol=1e-3, atol=1e-3)


def _without_head_two(z, hook):
    z[:, :, 2] = 0
    return z


def test_missing_biases_are_zeros_and_cannot_be_written() -> None:
    model = lensbridge.load(build(Shape("mistral")))
    assert model.b_Q.full().abs().max() == 0
    assert model.b_U.abs().max() == 0
    assert model.blocks[0].ln1.b.abs().max() == 0
    with pytest.raises(WeightError, match="copy"):
        model.b_Q[0] = 1.0
    with pytest.raises(WeightError, match="one layer at a time"):
        model.W_Q[:, 1] = 0.0


def test_absent_weights_say_so() -> None:
    gpt2, llama = (lensbridge.load(build(Shape(f))) for f in ("gpt2", "llama"))
    with pytest.raises(WeightError, match="not gated"):
        _ = gpt2.blocks[0].mlp.W_gate
    with pytest.raises(WeightError, match="W_gate"):
        _ = gpt2.W_gate
    with pytest.raises(WeightError, match="no learned absolute positions"):
        _ = llama.W_pos
    with pytest.raises(WeightError, match=r"Did you mean .*'blocks\.0\.attn\.W_Q'"):
        llama.weight("blocks.0.attn.W_q")
    with pytest.raises(WeightError, match="no ln1_post"):
        _ = llama.blocks[0].ln1_post


def test_a_stack_reads_one_layer_when_one_is_asked_for(monkeypatch) -> None:
    from lensbridge.native.linear import Linear

    model = lensbridge.load(build(Shape("llama", layers=3)))
    stack = model.W_Q
    read = []
    original = Linear.weight
    monkeypatch.setattr(Linear, "weight", lambda self: read.append(self) or original(self))
    one = stack[2, 1]
    assert one.shape == (28, 6)
    assert [linear.module for linear in read] == [model.hf_model.model.layers[2].self_attn.q_proj]
    assert one.untyped_storage().data_ptr() == (
        model.hf_model.model.layers[2].self_attn.q_proj.weight.untyped_storage().data_ptr()
    )
    assert stack.shape == (3, 4, 28, 6)
    assert len(read) == 1


def test_a_stack_behaves_like_a_tensor() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3)))
    whole = torch.stack([block.attn.W_Q for block in model.blocks])
    stack = model.W_Q
    assert isinstance(stack, torch.Tensor)
    assert torch.equal(stack.full(), whole)
    assert torch.equal(stack[:, 1], whole[:, 1])
    assert torch.equal(stack[-1], whole[-1])
    assert torch.equal(stack[1:, ..., 2], whole[1:, ..., 2])
    assert torch.equal(stack[torch.tensor([2, 0])], whole[[2, 0]])
    assert torch.equal(stack @ model.W_K.mT, whole @ model.W_K.full().mT)
    assert torch.equal(2 * stack + 1, 2 * whole + 1)
    assert torch.equal(stack.norm(dim=-1), whole.norm(dim=-1))
    assert torch.equal(einops.rearrange(stack, "l h m d -> (l h) m d"), whole.flatten(0, 1))
    product = einops.einsum(stack, model.W_K, "l h m d, l h n d -> l h m n")
    torch.testing.assert_close(product, whole @ model.W_K.full().mT)
    assert len(stack) == 3
    assert all(torch.equal(a, b) for a, b in zip(stack, whole, strict=True))
    assert stack.detach().numpy().shape == (3, 4, 24, 6)
    assert stack.cpu().shape == stack.to(torch.float64).shape == whole.shape
    stack.square().sum().backward()
    grad = model.hf_model.transformer.h[0].attn.c_attn.weight.grad
    torch.testing.assert_close(
        grad[:, :24], 2 * model.hf_model.transformer.h[0].attn.c_attn.weight[:, :24]
    )
    assert "LayerStack" in repr(stack)


def test_tied_embeddings_stay_tied() -> None:
    hf = build(Shape("gpt2"))
    model = lensbridge.load(hf)
    assert model.cfg.tie_word_embeddings
    assert model.W_U.data_ptr() == model.W_E.data_ptr() == hf.transformer.wte.weight.data_ptr()
    with torch.no_grad():
        model.W_E[5] = 0.0
    assert model.W_U[:, 5].abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_by_name(family: str) -> None:
    model = lensbridge.load(build(Shape(family)))
    named = dict(model.named_weights())
    assert list(named) == model.weight_names
    assert torch.equal(named["blocks.1.attn.W_Q"], model.W_Q[1])
    assert torch.equal(model.weight("blocks.0.mlp.W_out"), model.blocks[0].mlp.W_out)
    assert torch.equal(named["unembed.W_U"], model.W_U)
    assert torch.equal(named["ln_final.w"], model.ln_final.w)
    assert model.weight_state("blocks.1.attn.W_Q") == "plain"


@given(shapes())
def test_layouts_split_and_merge_back(shape: Shape) -> None:
    h, g, d = shape.heads, shape.kv_heads, shape.d_head
    for make in (blocked, grouped):
        whole = torch.randn(2, 3, (h + 2 * g) * d)
        for role, n in (("q", h), ("k", g), ("v", g)):
            layout = make(role, h, g, d)
            share = layout.split(whole)
            assert share.shape == (2, 3, n, d)
            assert torch.equal(layout.merge(whole, share), whole)
            merged = layout.merge(whole, share + 1)
            assert torch.equal(layout.split(merged), share + 1)
            others = [make(other, h, g, d) for other in "qkv" if other != role]
            assert all(torch.equal(one.split(merged), one.split(whole)) for one in others)
    plain = torch.randn(2, h * d)
    assert torch.equal(heads(h, d).merge(plain, heads(h, d).split(plain)), plain)
