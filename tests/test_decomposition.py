"""Caches take the residual stream apart: every sum is held against the stream itself."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from lensbridge_adapters import lensbridge_architectures
from tiny_models import Shape, build, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lensbridge
from lensbridge.cache import ActivationCache
from lensbridge.errors import (
    AbsentPointError,
    InputError,
    LensbridgeError,
    NotCachedError,
)
from lensbridge.inputs.random import inputs_for
from lensbridge.model import LensModel
from lensbridge.spec import Architecture
from lensbridge.testing import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
named = partial(of_class, dtype=torch.float64)

IDS = tokens()
LARGE = ("hook_q_input", "hook_k_input", "hook_v_input", ".experts.")


def everything(model: LensModel) -> ActivationCache:
    """All points but copies of the stream and the insides of experts."""
    inputs = dict(inputs_for(model.hf_model))
    _, cache = model.run_with_cache(
        inputs,
        names_filter=[
            lambda name: not any(part in name for part in LARGE),
            lambda name: name.endswith(".hook_result"),
        ],
        return_type=None,
    )
    assert isinstance(cache, ActivationCache)
    return cache


def run(model: LensModel, names: object = None, ids: Tensor = IDS) -> ActivationCache:
    _, cache = model.run_with_cache(ids, names_filter=names)  # type: ignore[arg-type]
    assert isinstance(cache, ActivationCache)
    return cache


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal at the size of the numbers; in float64 too many norms compute in float32."""
    precision = {torch.float64: 1e-6, torch.float32: 3e-5}[wanted.dtype]
    size = float(wanted.abs().max().clamp(min=1.0))
    torch.testing.assert_close(found, wanted, rtol=0, atol=precision * size)


# --- every architecture that has a description ------------------------------------------------

SUMS = frozenset(
    [
        *("afmoe_mup", "albert", "axk2", "bart", "bart_decoder", "beam", "bert", "blenderbot"),
        *("bloom_skip_norm", "blt", "clip_vision", "cohere", "ctrl", "data2vec_text", "dbrx"),
        *("deberta", "deepseek_v4", "doge", "esm2", "falcon", "falcon_h1", "gemma2"),
        *("gemma3n_text", "gemma4_text", "git", "gpt2", "gpt_neox", "gptj", "granite"),
        *("hrm_text", "hyperclovax_post_norms", "jetmoe", "kimi_linear", "llama"),
        *("longcat_flash", "mamba", "minimax", "mllama", "moshi", "mpt", "nemotron_h", "olmo2"),
        *("opt_post_norm", "qwen3_next", "recurrent_gemma", "reformer", "rwkv", "t5", "vit"),
        *("whisper", "xlm", "xlnet", "zamba", "zaya"),
    ]
)
"""One description for each way to sum a stream; the others are held in `make conformance`."""


def held() -> Iterator[Any]:
    for one in lensbridge_architectures():
        yield pytest.param(one, id=one.name, marks=() if one.name in SUMS else pytest.mark.matrix)


def test_the_sample_is_there() -> None:
    assert {one.name for one in lensbridge_architectures()} >= SUMS


@pytest.mark.parametrize("architecture", [*held()])
def test_terms_heads_and_neurons_sum_to_the_stream(architecture: Architecture) -> None:
    if architecture.name == "gemma3n":
        pytest.importorskip("timm")  # has its tower
    model = lensbridge.load(tiny_model(architecture))
    cache = everything(model)
    summed = 0
    for stack in model.native.stacks:
        if f"{stack.prefix}.0.hook_resid_pre" not in cache:
            continue  # this input does not reach it
        last = len(stack.blocks)
        for layer, mlp_input in [(1, False), (last - 1, True), (last, False)]:
            wanted = stream(cache, stack.prefix, layer, mlp_input, last)
            asked = {"layer": layer, "mlp_input": mlp_input, "stack": stack.prefix, "check": True}
            if mlp_input and stack.blocks[layer].pair is not None:
                with pytest.raises(InputError, match="two streams"):
                    cache.decompose_resid(**asked)  # type: ignore[arg-type]
                continue
            close(cache.decompose_resid(**asked).sum(0), wanted)  # type: ignore[union-attr]
            close(cache.get_full_resid_decomposition(**asked).sum(0), wanted)  # type: ignore[union-attr]
            summed += 1
    assert summed


def stream(cache: ActivationCache, prefix: str, layer: int, mlp_input: bool, last: int) -> Tensor:
    """What a layer's attention or MLP reads, or what the last layer leaves."""
    if layer == last:
        return cache[f"{prefix}.{last - 1}.hook_resid_post"]
    names = [f"{prefix}.{layer}.hook_resid_{end}" for end in ("mid_cross", "mid", "pre")]
    there = [name for name in (names if mlp_input else names[2:]) if name in cache]
    return cache[there[0]]


# --- by hand ----------------------------------------------------------------------------------


def rms_divisor(x: Tensor, eps: float) -> Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def test_a_head_behind_a_sandwich_norm_by_hand() -> None:
    model = named("Gemma2ForCausalLM")
    cache = run(model)
    layer: torch.nn.Module = model.hf_model.model.layers[1]  # type: ignore[union-attr,index]
    heads = cache["z", 1]
    weight = layer.self_attn.o_proj.weight.unflatten(1, heads.shape[-2:])  # type: ignore[union-attr,operator]
    writes = torch.einsum("bphd,mhd->hbpm", heads, weight.detach())
    norm = layer.post_attention_layernorm
    bias = layer.self_attn.o_proj.bias.detach()  # type: ignore[union-attr,operator]
    divisor = rms_divisor(writes.sum(0) + bias, norm.eps)  # type: ignore[union-attr,arg-type]
    wanted = writes / divisor * (1 + norm.weight.detach())  # type: ignore[union-attr,operator]
    found, labels = cache.stack_head_results(layer=2, return_labels=True)
    assert labels[len(writes) :] == [f"L1H{h}" for h in range(len(writes))]
    torch.testing.assert_close(found[len(writes) :], wanted, rtol=1e-5, atol=1e-6)


def test_a_term_behind_post_norms_by_hand() -> None:
    model = named("BertForMaskedLM")
    cache = run(model, ids=IDS)
    encoder = model.hf_model.bert.encoder.layer  # type: ignore[union-attr]
    terms, labels = cache.decompose_resid(layer=1, return_labels=True)
    attention = cache["attn_out", 0]
    for at, norm in (
        ("ln1", encoder[0].attention.output.LayerNorm),  # type: ignore[index,union-attr]
        ("ln2", encoder[0].output.LayerNorm),  # type: ignore[index,union-attr]
    ):
        divisor = cache[f"blocks.0.{at}.hook_scale"]
        attention = (attention - attention.mean(-1, keepdim=True)) / divisor * norm.weight.detach()
    close(terms[labels.index("0_attn_out")], attention)
    assert {"embed_rest", "0_ln1_bias", "0_ln2_bias"} <= set(labels)


def test_neurons_by_hand() -> None:
    model = named("GPT2LMHeadModel")
    cache = run(model)
    wanted = torch.einsum("bpf,fm->fbpm", cache["post", 1], model.W_out[1].detach())
    rows, labels = cache.stack_neuron_results(layer=2, return_labels=True)
    width = model.cfg.d_mlp
    close(rows[width:], wanted)
    assert labels[width] == "L1N0"
    close(cache.get_neuron_results(1, [3, 5], pos_slice=-1), wanted[[3, 5], :, -1].movedim(0, 1))
    close(cache.get_neuron_results(-1, 3), wanted[3])


def test_what_experts_share_is_one_term() -> None:
    cache = run(named("MixtralForCausalLM"))
    _, labels = cache.get_full_resid_decomposition(return_labels=True, check=True)
    assert [one for one in labels if "mlp_out" in one] == ["0_mlp_out", "1_mlp_out"]
    with pytest.raises(AbsentPointError, match="MoE cannot be read one by one"):
        cache.stack_neuron_results()


def test_heads_behind_a_gate_need_their_results() -> None:
    model = named("Qwen3NextForCausalLM")
    with pytest.raises(NotCachedError, match=r"Keep blocks\.\d\.attn\.hook_result"):
        run(model).stack_head_results()
    whole = [None, "result"]
    assert isinstance(run(model, whole).stack_head_results(), Tensor)


# --- projected ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["GPT2LMHeadModel", "Gemma2ForCausalLM", "GraniteForCausalLM", "BitNetForCausalLM"]
)
@pytest.mark.parametrize("apply_ln", [False, True])
def test_projected_terms_are_the_terms_projected(name: str, apply_ln: bool) -> None:
    cache = run(named(name), [None, "result"])
    onto = torch.randn(cache["resid_pre", 0].shape[-1], 3, dtype=torch.float64)
    asked = {"apply_ln": apply_ln, "pos_slice": (1, 5), "check": True}
    whole = cache.get_full_resid_decomposition(**asked)  # type: ignore[arg-type]
    found = cache.get_full_resid_decomposition(project_output_onto=onto, **asked)  # type: ignore[arg-type]
    torch.testing.assert_close(found, whole @ onto, rtol=1e-5, atol=1e-5)
    one = cache.stack_head_results(project_output_onto=onto[:, 0], apply_ln=apply_ln)
    heads = cache.stack_head_results(apply_ln=apply_ln)
    torch.testing.assert_close(one, heads @ onto[:, 0], rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            fresh = all(out.untyped_storage() is not one for one in args)
            self.numel = max(self.numel, out.untyped_storage().nbytes() if fresh else 0)
        return out


def test_a_projection_forms_no_vector_for_a_neuron() -> None:
    model = named("GPT2LMHeadModel", n_embd=48, n_inner=512, n_layer=3)
    cache = run(model)
    onto = torch.randn(48, 2, dtype=torch.float64)
    with Largest() as made:
        rows = cache.get_full_resid_decomposition(project_output_onto=onto, apply_ln=True)
    whole = rows[..., 0].numel() * 48 * 8
    result = rows.numel() * rows.element_size()
    assert made.numel <= max(2 * result, 512 * 48 * 8)  # the result, or one layer's W_out
    assert made.numel < whole / 8


def test_heads_projected_form_no_vector_for_a_head() -> None:
    model = named("GPT2LMHeadModel", n_embd=96, n_head=8, n_inner=8)
    cache = run(model, ids=IDS.repeat(8, 4))
    onto = torch.randn(96, dtype=torch.float64)
    with Largest() as made:
        cache.stack_head_results(project_output_onto=onto)
    per_layer = 8 * 16 * IDS.shape[1] * 4 * 96 * 8
    assert made.numel < per_layer / 3


# --- logits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["GPT2LMHeadModel", "LlamaForCausalLM", "GraniteForCausalLM", "T5ForConditionalGeneration"],
)
def test_attributions_sum_to_the_logit(name: str) -> None:
    model = named(name)
    inputs = dict(inputs_for(model.hf_model))
    logits, cache = model.run_with_cache(inputs)
    assert isinstance(cache, ActivationCache)
    assert isinstance(logits, Tensor)
    rows = cache.get_full_resid_decomposition(check=True)
    assert isinstance(rows, Tensor)
    batch = rows.shape[1]
    right, wrong = torch.arange(batch) + 3, torch.arange(batch) + 9
    attributed = cache.logit_attrs(rows, right, wrong).sum(0)
    norm = model.ln_final.b @ (model.W_U[:, right] - model.W_U[:, wrong])
    beside = (norm + model.b_U[right] - model.b_U[wrong]).detach()
    each = torch.arange(batch)
    wanted = logits[each, :, right] - logits[each, :, wrong] - beside.unsqueeze(-1)
    torch.testing.assert_close(attributed, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_attributions_for_one_token_and_for_each_position() -> None:
    model = named("LlamaForCausalLM")
    logits, cache = model.run_with_cache(IDS)
    assert isinstance(cache, ActivationCache)
    assert isinstance(logits, Tensor)
    rows = cache.decompose_resid(pos_slice=-1)
    last = cache.logit_attrs(rows, 5, pos_slice=-1).sum(0)
    close(last, logits[:, -1, 5].detach())
    following = IDS[:, 1:]
    shown = cache.decompose_resid(pos_slice=(0, -1))
    found = cache.logit_attrs(shown, following, pos_slice=(0, -1)).sum(0)
    close(found, logits[:, :-1].gather(-1, following.unsqueeze(-1)).squeeze(-1).detach())
    second = cache.logit_attrs(cache.decompose_resid(), 5, batch_slice=1).sum(0)
    close(second, logits[1, :, 5].detach())
    with pytest.raises(InputError, match="differ in number"):
        cache.logit_attrs(rows, torch.tensor([1, 2]), torch.tensor([1, 2, 3]), pos_slice=-1)


def test_a_head_with_a_transform_has_no_shares() -> None:
    cache = run(named("BertForMaskedLM"))
    with pytest.raises(InputError, match="non-linear"):
        cache.logit_attrs(cache.decompose_resid(), 3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_the_last_accumulated_row_gives_the_models_logits(family: str) -> None:
    model = lensbridge.load(build(Shape(family)))
    logits, cache = model.run_with_cache(IDS)
    assert isinstance(cache, ActivationCache)
    assert isinstance(logits, Tensor)
    rows, labels = cache.accumulated_resid(apply_ln=True, incl_mid=True, return_labels=True)
    assert labels[-1] == "final_post"
    assert ("0_mid" in labels) == (family != "neox")
    torch.testing.assert_close(rows[-1] @ model.W_U + model.b_U, logits, rtol=1e-5, atol=1e-5)
    streams = cache.accumulated_resid(layer=1, mlp_input=family != "neox")
    assert torch.equal(streams[1], cache["resid_pre", 1])
    if family != "neox":
        assert torch.equal(streams[2], cache["resid_mid", 1])


def test_rows_through_a_layers_norm_sum_to_what_it_gives() -> None:
    model = named("GPT2LMHeadModel")
    cache = run(model)
    rows = cache.decompose_resid(layer=1, mlp_input=True, apply_ln=True)
    close(rows.sum(0) + model.blocks[1].ln2.b.detach(), cache["blocks.1.ln2.hook_out"])  # type: ignore[union-attr]
    same = cache.apply_ln_to_stack(cache.decompose_resid(layer=1, mlp_input=True), 1, True)
    close(same, rows)
    final = cache.apply_ln_to_stack(cache["resid_post", -1][None], recompute_ln=True)
    close(final[0], cache["ln_final.hook_out"])


# --- stacks, results, errors -------------------------------------------------------------------


def test_activations_of_the_layers_that_have_them() -> None:
    model = named("JambaForCausalLM")
    cache = run(model)
    layers = [i for i in range(model.cfg.n_layers) if f"blocks.{i}.attn.hook_q" in cache]
    assert 0 < len(layers) < model.cfg.n_layers
    stacked = cache.stack_activation("q")
    assert torch.equal(stacked, torch.stack([cache["q", i] for i in layers]))
    everywhere = cache.stack_activation("resid_post", 2)
    assert torch.equal(everywhere[1], cache["resid_post", 1])
    with pytest.raises(AbsentPointError):
        cache.stack_activation("rot_q")


def test_results_are_put_into_the_cache() -> None:
    model = named("MistralForCausalLM")
    cache = run(model)
    cache.compute_head_results()
    wanted = run(model, "result")
    close(cache["result", 1], wanted["result", 1])
    rows, labels = cache.stack_head_results(return_labels=True, incl_remainder=True)
    assert labels[-1] == "remainder"
    close(rows.sum(0), cache["resid_post", -1])


def test_modes_and_slices() -> None:
    cache = run(named("LlamaForCausalLM"))
    attention, labels = cache.decompose_resid(mode="attn", incl_embeds=False, return_labels=True)
    assert labels == ["0_attn_out", "1_attn_out"]
    assert torch.equal(attention[1], cache["attn_out", 1])
    assert cache.decompose_resid(pos_slice=2).shape == (5, *cache["resid_pre", 0][:, 2].shape)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="check needs every term"):
        cache.decompose_resid(mode="mlp", check=True)
    with pytest.raises(InputError, match="mode must be"):
        cache.decompose_resid(mode="moe")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has 2 layers"):
        cache.decompose_resid(layer=3)
    with pytest.raises(InputError, match="no stack 'encoder'"):
        cache.decompose_resid(stack="encoder")
    with pytest.raises(InputError, match="project_output_onto"):
        cache.stack_head_results(project_output_onto=torch.zeros(1, 2, 3))


def test_an_edit_of_the_stream_itself_is_found() -> None:
    model = named("LlamaForCausalLM")
    with model.hooks([("blocks.1.hook_resid_mid", lambda resid, hook: resid + 0.01)]):
        cache = run(model)
    with pytest.raises(LensbridgeError, match="do not sum"):
        cache.decompose_resid(check=True)
    cache.decompose_resid(layer=1, check=True)


def test_without_a_batch_axis() -> None:
    cache = run(named("GPT2LMHeadModel"), ids=IDS[:1])
    alone = cache.remove_batch_dim()
    close(
        alone.get_full_resid_decomposition(check=True), cache.get_full_resid_decomposition()[:, 0]
    )


def test_in_half_precision() -> None:
    found = next(one for one in lensbridge_architectures() if one.name == "gemma2")
    model = lensbridge.load(tiny_model(found, dtype=torch.bfloat16))
    cache = run(model)
    assert cache.decompose_resid(check=True).dtype == torch.bfloat16  # type: ignore[union-attr]
    cache.get_full_resid_decomposition(check=True)


def test_heads_need_no_embeddings_and_neurons_no_heads() -> None:
    model = named("GPT2LMHeadModel")
    whole = run(model)
    heads = run(model, ["blocks.*.attn.hook_z"]).stack_head_results(pos_slice=-1)
    close(heads, whole.stack_head_results(pos_slice=-1))  # type: ignore[arg-type]
    neurons = run(model, ["blocks.*.mlp.hook_post"]).stack_neuron_results()
    close(neurons, whole.stack_neuron_results())  # type: ignore[arg-type]
    written = run(model, ["blocks.*.hook_attn_out"]).decompose_resid(mode="attn", incl_embeds=False)
    assert torch.equal(written, torch.stack([whole["attn_out", i] for i in range(2)]))


def test_what_is_missing_is_said_at_once() -> None:
    cache = run(named("GPT2LMHeadModel"), ["blocks.0.hook_resid_pre"])
    with pytest.raises(NotCachedError, match=r"blocks\.1\.hook_resid_pre and 1 more.*post'\]"):
        cache.accumulated_resid()
    with pytest.raises(NotCachedError, match=r"and 3 more.*'blocks\.\*\.hook_mlp_out'\]"):
        cache.decompose_resid()
    with pytest.raises(NotCachedError, match=r"names_filter=\['blocks\.\*\.attn\.hook_q'\]"):
        cache.stack_activation("q")


def test_without_embeddings_nothing_of_theirs_is_in_it() -> None:
    cache = run(named("BloomForCausalLM"))  # a norm behind the embedding, with a bias
    layers = ["0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    every, labels = cache.decompose_resid(return_labels=True)
    rows, kept = cache.decompose_resid(incl_embeds=False, return_labels=True)
    assert labels[:-4] == ["embed", "ln_embed_bias"]
    assert kept == layers
    assert torch.equal(rows, every[-4:])
    close(every[:-4].sum(0), cache["resid_pre", 0])


def test_rows_of_other_positions_are_refused() -> None:
    cache = run(named("LlamaForCausalLM"), ids=IDS[:1])
    last = cache.stack_head_results(pos_slice=-1)
    assert isinstance(last, Tensor)
    with pytest.raises(InputError, match="the run's examples and positions are"):
        cache.apply_ln_to_stack(last)  # would broadcast to every position
    with pytest.raises(InputError, match="the run's examples and positions are"):
        cache.logit_attrs(last, 5)
    with pytest.raises(InputError, match="channels"):
        cache.apply_ln_to_stack(torch.zeros(3, 1, len(IDS[0]), 5))
    with pytest.raises(InputError, match="has 7 channels"):
        cache.stack_head_results(project_output_onto=torch.zeros(7))
    with pytest.raises(InputError, match="3 tokens"):
        cache.logit_attrs(last, torch.tensor([1, 2, 3]), pos_slice=-1)
    alone = cache.remove_batch_dim()
    rows = alone.decompose_resid(apply_ln=False)
    close(  # rows without a batch beside a cache with one example
        cache.logit_attrs(rows, 5, has_batch_dim=False),  # type: ignore[arg-type]
        alone.logit_attrs(rows, 5, has_batch_dim=False),  # type: ignore[arg-type]
    )


@torch.no_grad()
def test_one_row_by_itself() -> None:
    model = named("GPT2LMHeadModel")
    logits, cache = model.run_with_cache(IDS)
    assert isinstance(logits, Tensor)
    assert isinstance(cache, ActivationCache)
    last = cache["resid_post", -1][:, -1]  # as notebooks check a logit difference
    right, wrong = IDS[:, 0], IDS[:, 1]
    difference = model.W_U[:, right].mT - model.W_U[:, wrong].mT
    shift = model.ln_final.b @ difference.mT
    wanted = logits[:, -1].gather(1, right[:, None]) - logits[:, -1].gather(1, wrong[:, None])
    scaled = cache.apply_ln_to_stack(last, layer=-1, pos_slice=-1)
    close((scaled * difference).sum(-1) + shift, wanted[:, 0])
    close(cache.logit_attrs(last, right, wrong, pos_slice=-1) + shift, wanted[:, 0])
    with pytest.raises(InputError, match="the run's examples and positions are"):
        cache.apply_ln_to_stack(last)
