"""Circuits against what the bare model does with its own attention patterns and biases."""

from typing import Any

import pytest
import torch
from hypothesis import given
from lensbridge_adapters import lensbridge_architectures
from tiny_models import FAMILIES, Layer, Shape, build, shapes, tokens
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError, TokenError, WeightError
from lensbridge.inputs.random import inputs_for
from lensbridge.tensors.factored import FactoredMatrix


def tiny(name: str, class_name: str | None = None, **fields: Any) -> nn.Module:
    """A tiny model of a built-in description, in float64, patterns readable."""
    found = next(one for one in lensbridge_architectures() if one.name == name)
    return tiny_model(found, class_name, dtype=torch.float64, kernel="eager", **fields)


class Seen:
    """What went into and came out of some modules of a bare model in one run."""

    def __init__(self, hf: nn.Module, modules: list[nn.Module], **call: Any) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        handles = [m.register_forward_hook(self._see, with_kwargs=True) for m in modules]
        with torch.no_grad():
            self.result = hf(**call)
        for handle in handles:
            handle.remove()

    def _see(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        self.inputs[module] = (args[0] if args else kwargs["hidden_states"]).clone()
        self.outputs[module] = (out[0] if isinstance(out, tuple) else out).clone()


def without_biases(*modules: nn.Module) -> None:
    """Set the biases of some projections to zero."""
    with torch.no_grad():
        for module in modules:
            if module.bias is not None:
                module.bias.zero_()


# --- QK and OV -----------------------------------------------------------------------------------


@given(shapes())
def test_ov_moves_what_the_native_pattern_moves(shape: Shape) -> None:
    """attn_out = sum over heads of pattern @ x @ OV, where no bias is added."""
    shape = Shape(**{**shape.__dict__, "dtype": torch.float64, "kernel": "eager"})
    hf = build(shape)
    model = lensbridge.load(hf)
    layers = [Layer(hf, shape.family, i) for i in range(shape.layers)]
    for layer in layers:
        without_biases(layer.o, *set(layer.qkv.values()))
    watched = [m for layer in layers for m in (layer.ln1, layer.o)]
    seen = Seen(hf, watched, input_ids=tokens(), output_attentions=True)
    for i, layer in enumerate(layers):
        x, pattern = seen.outputs[layer.ln1], seen.result.attentions[i]
        moved = sum(pattern[:, h] @ x @ model.OV[i, h].AB for h in range(shape.heads))
        assert_close(moved, seen.outputs[layer.o])
        by_view = sum(pattern[:, h] @ x @ one.AB for h, one in enumerate(model.blocks[i].attn.OV))
        assert_close(by_view, moved)


def test_qk_gives_the_scores_of_the_native_pattern() -> None:
    """GPT-2 has no rotation, so x QK x.T / sqrt(d) is what its softmax reads."""
    shape = Shape("gpt2", dtype=torch.float64, kernel="eager")
    hf = build(shape)
    model = lensbridge.load(hf)
    layer = Layer(hf, "gpt2", 1)
    without_biases(layer.qkv["q"])
    seen = Seen(hf, [layer.ln1], input_ids=tokens(), output_attentions=True)
    x = seen.outputs[layer.ln1]
    mask = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1)
    for h in range(shape.heads):
        scores = x @ model.QK[1, h].AB @ x.mT / shape.d_head**0.5 / 2  # layer 1 divides by 2
        assert_close((scores + mask).softmax(-1), seen.result.attentions[1][:, h])


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_layer_head_d_model_d_model(family: str) -> None:
    shape = Shape(family, layers=3)
    model = lensbridge.load(build(shape))
    for product in (model.QK, model.OV):
        assert isinstance(product, FactoredMatrix)
        assert product.shape == (3, 4, shape.d_model, shape.d_model)
        assert product.mdim == shape.d_head
    repeat = shape.heads // shape.kv
    for h in range(shape.heads):
        key, value = model.W_K[2, h // repeat], model.W_V[2, h // repeat]
        assert_close(model.QK[2, h].AB, model.W_Q[2, h] @ key.mT)
        assert_close(model.OV[2, h].AB, value @ model.W_O[2, h])
        assert_close(model.blocks[2].attn.QK[h].AB, model.W_Q[2, h] @ key.mT)
    layers, product = model.QK_for_attn_layers()
    assert layers == [0, 1, 2]
    assert_close(product.AB, model.QK.AB)


def test_latent_attention_has_circuits_up_to_its_norms_divisor() -> None:
    hf = tiny("deepseek", attention_bias=False, attention_dropout=0.0)
    model = lensbridge.load(hf)
    layer = hf.model.layers[0]
    attn = layer.self_attn
    watched = [layer.input_layernorm, attn.o_proj, attn.kv_a_layernorm]
    seen = Seen(hf, watched, input_ids=tokens(), output_attentions=True)
    latent = seen.inputs[attn.kv_a_layernorm]
    divisor = (latent.square().mean(-1, keepdim=True) + attn.kv_a_layernorm.variance_epsilon).sqrt()
    x, pattern = seen.outputs[layer.input_layernorm], seen.result.attentions[0]
    product = model.blocks[0].attn.OV
    moved = sum(pattern[:, h] @ (x / divisor) @ one.AB for h, one in enumerate(product))
    assert_close(moved, seen.outputs[attn.o_proj], rtol=1e-5, atol=1e-6)  # its norm is in float32
    widths = attn.qk_head_dim, attn.v_head_dim
    assert widths[0] != widths[1]
    assert (model.QK.mdim, model.OV.mdim) == widths
    assert model.QK.shape == model.OV.shape == (2, 4, 32, 32)


def test_a_hybrid_gives_the_layers_that_have_heads() -> None:
    hf = tiny("recurrent_gemma")
    model = lensbridge.load(hf)
    layers, qk = model.QK_for_attn_layers()
    _, ov = model.OV_for_attn_layers()
    assert layers == [2]
    block = hf.model.layers[2].temporal_block
    heads, width = block.num_attention_heads, block.head_dim
    query, out = block.q_proj.weight, block.o_proj.weight
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        shared = h // block.num_key_value_groups * width
        key = block.k_proj.weight[shared : shared + width]
        value = block.v_proj.weight[shared : shared + width]
        assert_close(qk[0, h].AB, query[own].mT @ key)
        assert_close(ov[0, h].AB, value.mT @ out[:, own].mT)
    for name in ("QK", "OV"):
        with pytest.raises(WeightError, match=rf"layers \[2\] of 3.*{name}_for_attn_layers"):
            getattr(model, name)
    assert list(model.all_head_labels) == [f"L2H{h}" for h in range(heads)]
    scores = model.all_composition_scores("V")
    assert scores.layer_indices == model.composition_layer_indices() == [2]
    assert scores.head_labels == model.attn_head_labels == model.all_head_labels
    assert scores.shape == (1, heads, 1, heads)


def test_a_model_without_heads_says_so() -> None:
    model = lensbridge.load(tiny("mamba"))
    for ask in (
        lambda: model.QK,
        model.OV_for_attn_layers,
        lambda: model.all_composition_scores("Q"),
    ):
        with pytest.raises(WeightError, match="No layer of 'blocks'"):
            ask()
    assert model.all_head_labels == []


def test_layers_of_different_widths_have_no_layer_axis() -> None:
    model = lensbridge.load(tiny("gemma4_text"))
    with pytest.raises(WeightError, match=r"Layers differ.*blocks\[0\].attn.QK"):
        _ = model.QK
    widths = {model.blocks[i].attn.QK.mdim for i in range(2)}
    assert len(widths) == 2


def test_an_encoder_decoder_has_two_stacks_and_crossings() -> None:
    hf = tiny("t5")
    model = lensbridge.load(hf)
    native = {"decoder": hf.decoder, "encoder": hf.encoder}
    heads = hf.config.num_heads
    for stack, tower in native.items():
        layers, ov = model.OV_for_attn_layers(stack)
        assert layers == list(range(len(tower.block)))
        own = tower.block[1].layer[0].SelfAttention
        assert_close(sum(x.AB for x in ov[1]), own.v.weight.mT @ own.o.weight.mT)
    assert_close(model.OV.AB, model.OV_for_attn_layers("decoder")[1].AB)
    cross = hf.decoder.block[1].layer[1].EncDecAttention
    found = model.blocks[1].cross_attn.QK
    assert_close(sum(x.AB for x in found), cross.q.weight.mT @ cross.k.weight)
    labels = model.all_head_labels
    assert labels[:2] == ["EL0H0", "EL0H1"]
    assert labels[-1] == f"DL{len(hf.decoder.block) - 1}H{heads - 1}"
    scores = model.all_composition_scores("V", stack="encoder")
    assert scores.head_labels[0] == "EL0H0"
    left, right = (
        model.OV_for_attn_layers("encoder")[1][0, 0].AB,
        model.OV_for_attn_layers("encoder")[1][1, 1].AB,
    )
    assert_close(scores[0, 0, 1, 1], (left @ right).norm() / (left.norm() * right.norm()))
    with pytest.raises(WeightError, match="no stack 'blocks'"):
        model.QK_for_attn_layers("blocks")


# --- composition scores --------------------------------------------------------------------------


@given(shapes())
def test_composition_scores_are_the_papers(shape: Shape) -> None:
    hf = build(Shape(**{**shape.__dict__, "dtype": torch.float64}))
    model = lensbridge.load(hf)
    ov, qk = model.OV.AB, model.QK.AB
    for mode, reader in (("Q", qk), ("K", qk.mT), ("V", ov)):
        scores = model.all_composition_scores(mode)
        n, h = shape.layers, shape.heads
        assert scores.shape == (n, h, n, h)
        product = torch.einsum("lhij,kgjm->lhkgim", ov, reader)
        sizes = ov.flatten(2).norm(dim=-1)[..., None, None] * reader.flatten(2).norm(dim=-1)
        later = torch.ones(n, n, dtype=torch.float64).triu(1)[:, None, :, None]
        assert_close(scores.scores, product.flatten(-2).norm(dim=-1) / sizes * later)
        assert scores.layer_indices == list(range(n))
        assert scores.head_labels == [f"L{i}H{j}" for i in range(n) for j in range(h)]
        assert type(scores[0]) is Tensor


def test_scores_of_latent_attention_and_of_short_numbers() -> None:
    model = lensbridge.load(tiny("deepseek"))
    ov, qk = model.OV.AB, model.QK.AB
    product = torch.einsum("hij,gmj->hgim", ov[0], qk[1])
    sizes = ov[0].flatten(1).norm(dim=-1)[:, None] * qk[1].flatten(1).norm(dim=-1)
    scores = model.all_composition_scores("K")
    assert_close(scores[0, :, 1], product.flatten(-2).norm(dim=-1) / sizes)
    short = lensbridge.load(build(Shape("llama", dtype=torch.bfloat16)))
    scores = short.all_composition_scores("Q")
    assert scores.dtype == torch.float32
    wide = lensbridge.load(short.hf_model.float()).all_composition_scores("Q")
    assert_close(scores.scores, wide.scores)


def test_another_mode_is_refused() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(InputError, match="'Q', 'K' or 'V', not 'O'"):
        model.all_composition_scores("O")


def test_labels_are_a_list_and_a_call() -> None:
    model = lensbridge.load(build(Shape("llama")))
    expected = [f"L{i}H{h}" for i in range(2) for h in range(4)]
    assert model.all_head_labels == expected
    assert model.all_head_labels() == expected


# --- biases --------------------------------------------------------------------------------------


def stream_of_biases(hf: nn.Module, blocks: Any, outs: list[nn.Module], **call: Any) -> Seen:
    """A run of a bare model in which every output projection gives its bias alone."""
    with torch.no_grad():
        for out in outs:
            out.weight.zero_()
    return Seen(hf, list(blocks), **call)


MLP_NORM = "post_attention_layernorm"
BIASED = {
    "granite": ("model.layers", "self_attn.o_proj", "mlp.down_proj", MLP_NORM),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2", "final_layer_norm"),
    "bloom": ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", MLP_NORM),
    "gpt_neox_japanese": (
        "gpt_neox_japanese.layers",
        "attention.dense",
        "mlp.dense_4h_to_h",
        MLP_NORM,
    ),
    "starcoder2": ("model.layers", "self_attn.o_proj", "mlp.c_proj", MLP_NORM),
    "dinov2": ("dinov2.encoder.layer", "attention.o_proj", "mlp.fc2", "norm2"),
}


@pytest.mark.parametrize("name", BIASED)
def test_biases_add_up_as_in_the_bare_model(name: str) -> None:
    """Multipliers of branches, one number or one per channel, and biases beside the projection."""
    path, attn, mlp, norm = BIASED[name]
    hf = tiny(name)
    model = lensbridge.load(hf)
    blocks = hf.get_submodule(path)
    outs = [block.get_submodule(one) for block in blocks for one in (attn, mlp)]
    norms = [block.get_submodule(norm) for block in blocks]
    seen = stream_of_biases(hf, [*blocks, *norms], outs, **inputs_for(hf))
    _agree(model, seen, blocks, norms)
    without_biases(*(block.get_submodule(mlp) for block in blocks))
    seen = Seen(hf, list(blocks), **inputs_for(hf))
    rebuilt = lensbridge.load(hf)
    start = seen.inputs[blocks[0]]
    end = seen.outputs[blocks[-1]]
    alone = rebuilt.accumulated_bias(len(blocks), include_mlp_biases=False)
    assert_close(end - start, alone.expand_as(start))
    assert_close(rebuilt.accumulated_bias(len(blocks)), alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_of_the_families(family: str) -> None:
    hf = build(Shape(family, layers=3, dtype=torch.float64))
    model = lensbridge.load(hf)
    layers = [Layer(hf, family, i) for i in range(3)]
    outs = [out for layer in layers for out in (layer.o, layer.down)]
    blocks, norms = [one.block for one in layers], [one.ln2 for one in layers]
    _agree(model, stream_of_biases(hf, [*blocks, *norms], outs, input_ids=tokens()), blocks, norms)


def _agree(model: Any, seen: Seen, blocks: Any, norms: list[nn.Module]) -> None:
    start = seen.inputs[blocks[0]]
    assert model.accumulated_bias(0).abs().max() == 0
    for i, (block, norm) in enumerate(zip(blocks, norms, strict=True)):
        for found, at in (
            (model.accumulated_bias(i), seen.inputs[block]),
            (model.accumulated_bias(i, mlp_input=True), seen.inputs[norm]),
            (model.accumulated_bias(i + 1), seen.outputs[block]),
        ):
            moved = (at.reshape(start.shape) - start).detach()
            assert_close(found.detach().expand_as(start), moved, rtol=1e-5, atol=1e-6)


def test_cross_attention_counts() -> None:
    hf = tiny("whisper")
    model = lensbridge.load(hf)
    blocks = hf.model.decoder.layers
    outs = [m for b in blocks for m in (b.self_attn.out_proj, b.encoder_attn.out_proj, b.fc2)]
    seen = stream_of_biases(hf, blocks, outs, **inputs_for(hf))
    moved = seen.outputs[blocks[-1]] - seen.inputs[blocks[0]]
    assert_close(model.accumulated_bias(len(blocks)).expand_as(moved), moved)


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("bert", {}, "the stream goes through a norm"),
        ("gemma2", {"attention_bias": True}, "goes through a norm before it is added"),
        ("gpt_oss", {}, "experts"),
    ],
)
def test_biases_that_depend_on_the_input_are_refused(
    name: str, fields: dict[str, Any], why: str
) -> None:
    model = lensbridge.load(tiny(name, **fields))
    assert model.accumulated_bias(0).abs().max() == 0
    with pytest.raises(WeightError, match=why):
        model.accumulated_bias(2)


def test_no_bias_is_no_reason_to_refuse() -> None:
    model = lensbridge.load(tiny("gemma2", attention_bias=False))
    assert torch.equal(model.accumulated_bias(2), torch.zeros(32, dtype=torch.float64))


@pytest.mark.parametrize("ask", [(-1, False), (3, False), (2, True)])
def test_layers_that_there_are_not(ask: tuple[int, bool]) -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(InputError, match="there are 2 layers"):
        model.accumulated_bias(*ask)


# --- directions ----------------------------------------------------------------------------------


def test_directions_of_tokens_are_columns_of_the_head() -> None:
    hf = build(Shape("llama"))
    model = lensbridge.load(hf)
    rows = hf.lm_head.weight
    assert torch.equal(model.tokens_to_residual_directions(7), rows[7])
    assert torch.equal(model.tokens_to_residual_directions(torch.tensor(7)), rows[7])
    for ids in ([5, 6], [[5], [6]], [[1, 2, 3], [4, 5, 6]], []):
        ids = torch.tensor(ids, dtype=torch.long)
        assert torch.equal(model.tokens_to_residual_directions(ids), rows[ids])
    assert torch.equal(model.tokens_to_residual_directions([5, 6]), rows[[5, 6]])
    for wrong in (61, -1, torch.tensor([3, 61])):
        with pytest.raises(TokenError, match="there are 61 tokens"):
            model.tokens_to_residual_directions(wrong)
    with pytest.raises(TokenError, match="ids or texts"):
        model.tokens_to_residual_directions(torch.tensor([0.5]))


def test_directions_of_texts() -> None:
    model = lensbridge.load("demo")
    paris, rome = model.to_single_token(" Paris"), model.to_single_token(" Rome")
    assert torch.equal(model.tokens_to_residual_directions(" Paris"), model.W_U[:, paris])
    both = model.tokens_to_residual_directions([" Paris", rome])
    assert torch.equal(both, model.W_U[:, [paris, rome]].mT)
    with pytest.raises(TokenError):
        model.tokens_to_residual_directions(" Paris Rome")


def test_a_head_with_a_layer_of_its_own_has_no_directions() -> None:
    model = lensbridge.load(tiny("bert"))
    with pytest.raises(WeightError, match="another layer before W_U"):
        model.tokens_to_residual_directions(3)


def test_all_that_the_first_layer_can_read() -> None:
    hf = build(Shape("gpt2"))
    model = lensbridge.load(hf)
    expected = torch.cat([hf.transformer.wte.weight, hf.transformer.wpe.weight])
    assert torch.equal(model.W_E_pos, expected)
    with pytest.raises(WeightError, match="no W_pos"):
        _ = lensbridge.load(build(Shape("llama"))).W_E_pos


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a name that transformers retires
def test_a_circuit_of_an_adapted_model_is_the_adapted_one() -> None:
    from peft import LoraConfig, get_peft_model

    config = LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=20,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    before = hf.model.layers[1].self_attn.v_proj.weight[6:12].clone()
    adapted = get_peft_model(
        hf, LoraConfig(target_modules=["v_proj"], r=2, init_lora_weights=False)
    )
    found = lensbridge.load(adapted.eval()).OV[1, 2].AB
    layer = adapted.merge_and_unload().model.layers[1].self_attn
    value = layer.v_proj.weight[6:12]
    assert not torch.allclose(before, value, atol=1e-3)
    assert_close(found, value.mT @ layer.o_proj.weight[:, 12:18].mT)
