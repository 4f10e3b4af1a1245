"""Encoders that nobody described: derived points are what their own modules read and give."""

from typing import Any

import pytest
import torch
import transformers
from lensbridge_adapters.funnel import FUNNEL
from raw import record
from torch import nn

import lensbridge
from lensbridge.conformance.tiny import tiny_from
from lensbridge.derive import derive
from lensbridge.spec import Architecture, Block
from lensbridge.testing import tiny_model

IDS = torch.tensor([[5, 9, 7, 11, 6], [8, 12, 14, 10, 13]])


def tiny(name: str) -> Any:
    return tiny_from(getattr(transformers, name), {}, torch.float32, None, seed=0)


def derived(model: nn.Module) -> Architecture:
    found = derive(model).architecture
    assert found is not None
    return found


def the_block(architecture: Architecture) -> Block:
    assert isinstance(architecture.block, Block)
    return architecture.block


def read(model: nn.Module, architecture: Architecture, **inputs: Any) -> Any:
    lens = lensbridge.load(model, architecture=architecture)
    return lens.run_with_cache(**inputs, names_filter=lens.hook_names)[1]


@pytest.mark.parametrize("name", ["ConvBertForMaskedLM", "YosoForMaskedLM"])
def test_mixers_end_in_a_projection_of_the_module_around(name: str) -> None:
    model = tiny(name)
    architecture = derived(model)
    mixer = the_block(architecture).mixer
    assert mixer is not None
    assert (mixer.path, mixer.written_by) == ("attention.self", "attention.output.dropout")
    raw: Any = record(model, input_ids=IDS)
    cache = read(model, architecture, input=IDS)
    for i, layer in enumerate(model.base_model.encoder.layer):
        at = f"blocks.{i}."
        assert torch.equal(cache[f"{at}mixer.hook_in"], raw.inputs[layer.attention.self])
        assert torch.equal(
            cache[f"{at}hook_mixer_out"], raw.outputs[layer.attention.output.dropout]
        )
        assert torch.equal(cache[f"{at}hook_resid_mid"], raw.outputs[layer.attention.output])
        assert torch.equal(cache[f"{at}mlp.hook_pre"], raw.outputs[layer.intermediate.dense])


def test_fourier_transforms_are_mixers_without_parameters() -> None:
    model = tiny("FNetForMaskedLM")
    architecture = derived(model)
    mixer = the_block(architecture).mixer
    assert mixer is not None
    assert mixer.path == "fourier.self"


def test_modules_that_return_tuples_are_projections_and_norms() -> None:
    model = tiny("IBertForMaskedLM")
    architecture = derived(model)
    raw: Any = record(model, input_ids=IDS)
    cache = read(model, architecture, input=IDS)
    layer = model.ibert.encoder.layer[1]
    inner = layer.attention.self
    for point, module in (("q", inner.query), ("k", inner.key), ("v", inner.value)):
        wanted = raw.outputs[module].unflatten(-1, (inner.num_attention_heads, -1))
        assert torch.equal(cache[f"blocks.1.attn.hook_{point}"], wanted)
    total = cache["blocks.1.attn.hook_result"].sum(-2) + layer.attention.output.dense.bias
    torch.testing.assert_close(total, cache["attn_out", 1])


def test_a_decoder_reads_its_own_embedding() -> None:
    model = tiny("EncoderDecoderModel")
    architecture = derived(model)
    assert architecture.embed == "decoder.bert.embeddings.word_embeddings"
    assert architecture.towers[0].embed == "encoder.embeddings.word_embeddings"
    assert the_block(architecture).cross is not None


def test_points_of_funnel_are_values_of_its_modules() -> None:
    model: Any = tiny_model(FUNNEL)
    raw: Any = record(model, input_ids=IDS)
    cache = read(model, FUNNEL, input=IDS)
    layers = {f"blocks.{i}.": layer for i, layer in enumerate(model.funnel.decoder.layers)}
    first = model.funnel.encoder.blocks[0]
    layers |= {f"full.blocks.{i}.": layer for i, layer in enumerate(first)}
    with torch.no_grad():
        patterns = model(IDS, output_attentions=True).attentions
    count = sum(len(block) for block in model.funnel.encoder.blocks)
    native = {f"full.blocks.{i}.": patterns[i] for i in range(len(first))}
    native |= {f"blocks.{i}.": patterns[count + i] for i in range(len(patterns) - count)}
    for at, layer in layers.items():
        attn, heads = layer.attention, model.config.n_head
        assert torch.equal(cache[f"{at}attn.hook_pattern"], native[at])
        for letter, module in (("q", attn.q_head), ("k", attn.k_head), ("v", attn.v_head)):
            wanted = raw.outputs[module].unflatten(-1, (heads, -1))
            assert torch.equal(cache[f"{at}attn.hook_{letter}"], wanted)
        assert torch.equal(
            cache[f"{at}attn.hook_z"], raw.inputs[attn.post_proj].unflatten(-1, (heads, -1))
        )
        assert torch.equal(cache[f"{at}hook_attn_out"], raw.outputs[attn.hidden_dropout])
        assert torch.equal(cache[f"{at}mlp.hook_pre"], raw.outputs[layer.ffn.linear_1])
    for name in ("half", "quarter"):
        blocks = model.funnel.encoder.blocks[1 if name == "half" else 2]
        for i, layer in enumerate(blocks):
            assert torch.equal(cache[f"{name}.blocks.{i}.hook_resid_post"], raw.outputs[layer])


def test_an_edit_of_a_pattern_of_funnel_reaches_the_logits() -> None:
    model: Any = tiny_model(FUNNEL)
    lens = lensbridge.load(model)

    def first_only(pattern: Any, hook: Any) -> Any:
        new = torch.zeros_like(pattern)
        new[..., 0] = 1
        return new

    edited = lens.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_pattern", first_only)])
    attn = model.funnel.decoder.layers[1].attention
    values: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        values.append(output)

    def give_first(module: nn.Module, args: Any) -> Any:
        return (values[-1][:, :1].expand_as(args[0]),)

    handles = [
        attn.v_head.register_forward_hook(keep),
        attn.post_proj.register_forward_pre_hook(give_first),
    ]
    with torch.no_grad():
        wanted = model(IDS).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(edited, wanted)
