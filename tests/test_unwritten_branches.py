"""What layers have of which it is not described how their branches write to the stream."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lensbridge_adapters.deepseek_v4 import DEEPSEEK_V4
from lensbridge_adapters.gemma3n import GEMMA3N_TEXT
from lensbridge_adapters.llama import LLAMA
from odd_model import OddConfig, OddModel
from raw import record
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge.derive import derive, derive_and_check
from lensbridge.errors import AbsentPointError, ArchitectureMismatchError, InputError
from lensbridge.inputs.random import inputs_for
from lensbridge.spec import Architecture, Attention, Block, GatedMLP, Norms, SplitQKV
from lensbridge.testing import CHECKS, Subject, run_check, tiny_model

IDS = torch.tensor([[5, 9, 7, 11, 6], [3, 8, 2, 4, 10]])


@pytest.fixture(scope="module")
def native() -> nn.Module:
    """Gemma 3n with layers that share keys, and gates that are cut off."""
    return tiny_model(
        GEMMA3N_TEXT,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.8, 0.0, 0.8, 0.0],
    )


@pytest.fixture(scope="module")
def lens(native: nn.Module) -> LensModel:
    return lensbridge.load(native)


# --- what is there -------------------------------------------------------------------------------


def test_points_are_what_the_native_modules_read_and_give(
    native: nn.Module, lens: LensModel
) -> None:
    raw: Any = record(native, input_ids=IDS)
    _, cache = lens.run_with_cache(IDS, names_filter=lens.hook_names)
    for i, layer in enumerate(native.model.layers):
        attn, mlp, at = layer.self_attn, layer.mlp, f"blocks.{i}."
        wanted = {
            "hook_attn_in": raw.inputs[layer.input_layernorm],
            "ln1.hook_out": raw.outputs[layer.input_layernorm],
            "attn.hook_q": raw.outputs[attn.q_norm],
            "attn.hook_z": raw.inputs[attn.o_proj].unflatten(-1, (lens.cfg.n_heads, -1)),
            "hook_attn_out": raw.outputs[attn],
            "hook_mlp_in": raw.inputs[layer.pre_feedforward_layernorm],
            "ln2.hook_out": raw.outputs[layer.pre_feedforward_layernorm],
            "mlp.hook_pre": raw.outputs[mlp.gate_proj],
            "mlp.hook_pre_linear": raw.outputs[mlp.up_proj],
            "mlp.hook_post": raw.inputs[mlp.down_proj],
            "hook_mlp_out": raw.outputs[mlp],
        }
        if i < 2:
            wanted |= {"attn.hook_k": raw.outputs[attn.k_norm]}
            wanted |= {"attn.hook_v": raw.outputs[attn.v_norm]}
        for point, value in wanted.items():
            assert torch.equal(cache[at + point], value), at + point
        assert (f"{at}attn.hook_k" in lens.hook_names) == (i < 2)


def test_patterns_are_those_that_the_model_returns(native: nn.Module, lens: LensModel) -> None:
    _, cache = lens.run_with_cache(IDS, names_filter="pattern")
    native.set_attn_implementation("eager")
    try:
        returned = native(input_ids=IDS, output_attentions=True).attentions
    finally:
        native.set_attn_implementation("sdpa")
    for i, pattern in enumerate(returned):
        torch.testing.assert_close(cache["pattern", i], pattern)


def test_heads_and_the_bias_sum_to_what_attention_gives(native: nn.Module, lens: LensModel) -> None:
    _, cache = lens.run_with_cache(IDS, names_filter=["result", "attn_out"])
    for i, layer in enumerate(native.model.layers):
        total = cache["result", i].sum(2) + layer.self_attn.o_proj.bias
        torch.testing.assert_close(total, cache["attn_out", i])


def test_an_edit_of_a_head_is_that_of_a_hook_on_the_native_module(
    native: nn.Module, lens: LensModel
) -> None:
    projection = native.model.layers[1].self_attn.o_proj
    width = projection.in_features // lens.cfg.n_heads

    def without(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        given = args[0].clone()
        given[..., width : 2 * width] = 0.0
        return (given,)

    handle = projection.register_forward_pre_hook(without)
    try:
        wanted = native(input_ids=IDS).logits
    finally:
        handle.remove()

    def remove(z: Tensor, hook: Any) -> None:
        z[:, :, 1] = 0.0

    edited = lens.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_z", remove)])
    assert torch.equal(edited, wanted)


# --- what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["hook_resid_mid", "ln1_post.hook_out", "attn.hook_head_out"])
def test_points_of_the_stream_say_why_they_are_lacking(lens: LensModel, point: str) -> None:
    with pytest.raises(AbsentPointError, match=r"write to the stream is not described.*AltUp"):
        lens.run_with_cache(IDS, names_filter=f"blocks.0.{point}")


def test_heads_and_neurons_are_no_terms_of_the_stream(lens: LensModel) -> None:
    _, cache = lens.run_with_cache(IDS)
    for stack in (cache.stack_head_results, cache.stack_neuron_results):
        with pytest.raises(AbsentPointError, match="add to the stream is not described"):
            stack()
    terms, labels = cache.decompose_resid(return_labels=True)
    assert [label for label in labels if "block" in label] == [f"{i}_block_out" for i in range(4)]
    assert terms.shape[1:] == cache["resid_post", 3].shape


def test_paths_are_not_patched_through_such_layers(lens: LensModel) -> None:
    from lensbridge.patching import path_patch

    with pytest.raises(InputError, match="not described"):
        path_patch(lens, IDS, IDS.flip(0), ["a0.h0"], ["logits"], lambda logits: logits.sum())


ATTN = Attention("self_attn", qkv=SplitQKV(), out="o_proj")
MLP = GatedMLP("mlp", gate="gate_proj", up="up_proj", down="down_proj")
WRITING = {
    "norms.post_attn": Block(norms=Norms(post_attn="post_attention_layernorm")),
    "skip_norm": Block(skip_norm=True),
    "attn.scale": Block(attn=replace(ATTN, scale=2.0)),
    "mlp.skip_scale": Block(mlp=replace(MLP, skip_scale=2.0)),
}


@pytest.mark.parametrize("word", WRITING)
def test_words_about_the_stream_are_refused_where_it_is_left_open(
    native: nn.Module, word: str
) -> None:
    wrong = replace(GEMMA3N_TEXT, block=replace(WRITING[word], residual=None))
    with pytest.raises(ArchitectureMismatchError, match=rf"residual=None leaves open.* {word} "):
        lensbridge.load(native, architecture=wrong)


# --- what the kit holds --------------------------------------------------------------------------


def complaint(model: nn.Module, architecture: Architecture, check: str) -> str:
    """What a check finds wrong with a description."""
    subject = Subject(model, inputs_for(model), architecture)
    chosen = next(one for one in CHECKS if one.name == check)
    return run_check(chosen, subject).detail


def changed(**words: Any) -> Architecture:
    """Gemma 3n's description with its layers changed."""
    assert isinstance(GEMMA3N_TEXT.block, tuple)
    return replace(GEMMA3N_TEXT, block=tuple(replace(one, **words) for one in GEMMA3N_TEXT.block))


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model(LLAMA)


def test_a_part_that_is_left_out_needs_a_reason(native: nn.Module) -> None:
    check = "nothing is left out"
    assert "undescribed['mlp']" in complaint(native, changed(mlp=None), check)
    assert "undescribed['attn']" in complaint(native, changed(attn=None), check)
    unexplained = replace(GEMMA3N_TEXT, undescribed={})
    assert "undescribed['residual']" in complaint(native, unexplained, check)
    for word in ("attn", "experts"):
        wrong = replace(GEMMA3N_TEXT, undescribed={**GEMMA3N_TEXT.undescribed, word: "no idea"})
        assert f"undescribed['{word}']" in complaint(native, wrong, check)


def test_a_norm_before_a_branch_is_not_left_out(native: nn.Module) -> None:
    assert isinstance(GEMMA3N_TEXT.block, tuple)
    wrong = changed(norms=replace(GEMMA3N_TEXT.block[0].norms, pre_mlp=None))
    found = complaint(native, wrong, "nothing is left out")
    assert "ln2" in found
    assert "pre_feedforward_layernorm" in found


def test_a_stream_that_is_a_plain_sum_is_not_left_open(llama: nn.Module) -> None:
    assert isinstance(LLAMA.block, Block)
    reason = {"residual": "I did not look"}
    wrong = replace(LLAMA, block=replace(LLAMA.block, residual=None), undescribed=reason)
    found = complaint(llama, wrong, "nothing is left out")
    assert "adds what its branches give" in found


def test_the_share_that_is_cut_off_is_held(native: nn.Module) -> None:
    assert isinstance(GEMMA3N_TEXT.block, tuple)
    mlp = GEMMA3N_TEXT.block[0].mlp
    assert isinstance(mlp, GatedMLP)
    for sparsity in (None, 0.5):
        wrong = changed(mlp=replace(mlp, sparsity=sparsity))
        assert "mlp.hook_post" in complaint(native, wrong, "the activation is as named")
    assert complaint(native, GEMMA3N_TEXT, "the activation is as named") == ""


def test_the_table_that_chooses_experts_is_held() -> None:
    native = tiny_model(DEEPSEEK_V4, mlp_layer_types=["hash_moe", "moe"])
    assert isinstance(DEEPSEEK_V4.block, tuple)
    routed = DEEPSEEK_V4.block[1]
    check = "editing the router re-routes"
    assert complaint(native, DEEPSEEK_V4, check) == ""
    forgotten = replace(DEEPSEEK_V4, block=routed)
    assert "blocks.0.hook_mlp_out" in complaint(native, forgotten, check)
    lens = lensbridge.load(native)
    _, cache = lens.run_with_cache(IDS, names_filter="expert_indices")
    table = native.model.layers[0].mlp.gate.tid2eid
    assert torch.equal(cache["blocks.0.mlp.hook_expert_indices"], table[IDS])
    assert lens.native.blocks[1].mlp.table is None


# --- derivation ----------------------------------------------------------------------------------


def test_branches_are_derived_where_the_sum_is_not() -> None:
    torch.manual_seed(0)
    model = OddModel(OddConfig(twist="sum")).eval()
    assert "residual" in derive(model).missing
    architecture = derive_and_check(model)
    block = architecture.block
    assert isinstance(block, Block)
    assert block.residual is None
    assert isinstance(block.attn, Attention)
    assert isinstance(block.mlp, GatedMLP)
    assert "leads from the layer's input" in architecture.undescribed["residual"]
    lens = lensbridge.load(model)
    assert {"blocks.0.attn.hook_pattern", "blocks.0.mlp.hook_post"} <= set(lens.hook_names)


def test_what_is_derived_for_gemma3n_reads_what_its_adapter_reads() -> None:
    model = tiny_model(GEMMA3N_TEXT, activation_sparsity_pattern=[0.0, 0.0])
    derived = derive(model).architecture
    assert derived is not None
    theirs, ours = lensbridge.load(model), lensbridge.load(model, architecture=derived)
    inside = [name for name in theirs.hook_names if name.startswith("blocks.")]
    assert [name for name in ours.hook_names if name.startswith("blocks.")] == inside
    _, a = theirs.run_with_cache(IDS, names_filter=inside)
    _, b = ours.run_with_cache(IDS, names_filter=inside)
    assert all(torch.equal(a[name], b[name]) for name in inside)
