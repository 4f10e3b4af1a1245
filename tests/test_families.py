"""Families against plain PyTorch: what their points hold and what an edit of them does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from described import of_class
from torch import Tensor, nn

import lensbridge
from lensbridge.cache import ActivationCache
from lensbridge.errors import (
    AbsentPointError,
    EditError,
    InputError,
    UnknownPointError,
    WeightError,
)
from lensbridge.inputs.random import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = of_class


IDS = torch.tensor([[9, 23, 41, 17, 60, 33, 12], [14, 52, 31, 77, 25, 48, 66]])


def close(found: Tensor, wanted: Tensor, atol: float = 2e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=atol)


def with_input(module: nn.Module, value: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """What a run gives when a module is called with another first argument."""
    handle = module.register_forward_pre_hook(lambda _, args: (value, *args[1:]))
    try:
        return run()
    finally:
        handle.remove()


def seen(module: nn.Module, run: Callable[[], object]) -> Any:
    """What a module returns in a run."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda *call: found.append(call[-1]))
    try:
        run()
    finally:
        handle.remove()
    return found[0]


# --- attention that no interface serves ----------------------------------------------------------

NO_INTERFACE = (
    "BloomForCausalLM",
    "MptForCausalLM",
    "FalconForCausalLM",
    "GPTJForCausalLM",
    "CodeGenForCausalLM",
    "GPTNeoForCausalLM",
    "BertForMaskedLM",
    "GptOssForCausalLM",
    "Gemma2ForCausalLM",
)


@pytest.mark.parametrize("name", NO_INTERFACE)
def test_an_edited_pattern_is_what_the_values_are_weighed_with(name: str) -> None:
    model = tiny(name)
    hf: Any = model.hf_model
    point = "blocks.0.attn.hook_pattern"
    _, cache = model.run_with_cache(IDS, [point, "blocks.0.attn.hook_v"])
    edited = cache[point].flip(1).roll(1, -1).tril()
    values = cache["v", 0]
    values = values.repeat_interleave(edited.shape[1] // values.shape[2], dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", edited, values).flatten(2)
    out = model.native.blocks[0].attn.out.module

    wanted = with_input(out, z, lambda: hf(IDS).logits)
    found = model.run_with_hooks(IDS, [(point, lambda value, hook: edited)])

    close(found, wanted)
    assert (found - hf(IDS).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name", ["BloomForCausalLM", "GPTJForCausalLM", "GPTNeoForCausalLM", "BertForMaskedLM"]
)
def test_patterns_are_the_native_ones(name: str) -> None:
    model = tiny(name, kernel="eager")
    hf: Any = model.hf_model
    native = hf(IDS, output_attentions=True).attentions
    _, cache = model.run_with_cache(IDS, "pattern")
    for layer, pattern in enumerate(native):
        close(cache["pattern", layer], pattern, atol=1e-6)


def test_what_a_hook_computes_is_not_taken_for_the_models_kernel() -> None:
    model = tiny("LlamaForCausalLM")

    def busy(value: Tensor, hook: Any) -> None:
        (value.flatten(2) @ value.flatten(2).mT).softmax(-1)

    points = ["blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern"]
    plain = model.run_with_cache(IDS, points)[1]
    with model.hooks([("blocks.0.attn.hook_v", busy)]):
        again = model.run_with_cache(IDS, points)[1]
    for point in points:
        assert torch.equal(plain[point], again[point])


@pytest.mark.parametrize("name", ["BloomForCausalLM", "GPTJForCausalLM", "LlamaForCausalLM"])
def test_a_late_start_gives_the_same_logits_whatever_layers_return(name: str) -> None:
    model = tiny(name)
    logits, cache = model.run_with_cache(IDS, "resid_pre")
    assert torch.equal(model(cache["resid_pre", 1], start_at_layer=1), logits)


@pytest.mark.parametrize(
    "name",
    ["DistilBertForMaskedLM", "RobertaForMaskedLM", "ElectraForMaskedLM", "CTRLLMHeadModel"],
)
def test_a_start_behind_the_last_layer_and_one_in_the_middle(name: str) -> None:
    """Heads behind a transform, embeddings of another width, embeddings that are written into."""
    model = tiny(name)
    logits, cache = model.run_with_cache(IDS, names_filter=["resid_pre", "resid_post"])
    assert isinstance(cache, ActivationCache)
    given = cache["resid_post", -1].clone()
    for start, stream in ((1, cache["resid_pre", 1].clone()), (model.cfg.n_layers, given)):
        kept = stream.clone()
        torch.testing.assert_close(model(stream, start_at_layer=start), logits)
        assert torch.equal(stream, kept)


@pytest.mark.parametrize("name", ["AlbertForMaskedLM", "ZambaForCausalLM"])
def test_layers_that_need_more_than_the_stream_are_not_started_at(name: str) -> None:
    model = tiny(name)
    stream = torch.zeros(2, 7, model.cfg.d_model)
    with pytest.raises(InputError, match="start_at_layer=1"):
        model(stream, start_at_layer=1)


def test_transformers_own_recording_sees_an_edit() -> None:
    model = tiny("LlamaForCausalLM")

    def zero(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    hf: Any = model.hf_model
    hf(IDS, output_hidden_states=True)  # installs transformers' own hooks
    with model.hooks([("blocks.0.hook_resid_post", zero)]):
        states = hf(IDS, output_hidden_states=True).hidden_states
    assert not states[1].any()


# --- norms behind the branches, multipliers ------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("Gemma2ForCausalLM", "post_attention_layernorm"),
        ("Olmo2ForCausalLM", "post_attention_layernorm"),
        ("Glm4ForCausalLM", "post_self_attn_layernorm"),
        ("Exaone4ForCausalLM", "post_attention_layernorm"),
    ],
)
def test_heads_write_through_the_norm_behind_attention(name: str, norm: str) -> None:
    model = tiny(name)
    block: Any = model.native.blocks[0]
    module = block.module.get_submodule(norm)
    added = seen(module, lambda: model.hf_model(IDS))
    _, cache = model.run_with_cache(IDS, ["blocks.0.attn.hook_result", "blocks.0.hook_attn_out"])
    assert torch.equal(cache["attn_out", 0], added)
    gain = model.blocks[0].ln1_post.w
    pre = seen(block.attn.out.module, lambda: model.hf_model(IDS))
    bias = model.blocks[0].attn.b_O * gain / block.norms["ln1_post"].scale(pre)
    close(cache["result", 0].sum(2) + bias, added)


def test_a_head_taken_out_behind_a_norm_is_taken_out_of_what_is_added() -> None:
    model = tiny("Gemma2ForCausalLM")
    names = ["blocks.0.attn.hook_result", "blocks.0.hook_attn_out"]
    _, clean = model.run_with_cache(IDS, names)

    def silence(value: Tensor, hook: Any) -> None:
        value[:, :, 1] = 0.0

    with model.hooks([(names[0], silence)]):
        _, edited = model.run_with_cache(IDS, names[1])
    close(edited["attn_out", 0], clean["attn_out", 0] - clean["result", 0][:, :, 1])


@pytest.mark.parametrize("name", ["GraniteForCausalLM", "GraniteMoeForCausalLM"])
def test_what_is_added_is_multiplied(name: str) -> None:
    model = tiny(name)
    hf: Any = model.hf_model
    layer: Any = model.native.blocks[0].module
    raw = seen(layer.self_attn, lambda: hf(IDS))[0]
    _, cache = model.run_with_cache(IDS, "attn_out")
    assert torch.equal(cache["attn_out", 0], raw * hf.config.residual_multiplier)


# --- mixtures of experts -------------------------------------------------------------------------


def test_an_edited_router_chooses_and_weighs_anew() -> None:
    model = tiny("MixtralForCausalLM")
    hf: Any = model.hf_model
    point = "blocks.0.mlp.hook_router_logits"
    logits = model.run_with_cache(IDS, point)[1][point]
    edited = logits.flip(-1) * 1.5
    weights, indices = edited.flatten(0, 1).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    experts = hf.model.layers[0].mlp.experts

    handle = experts.register_forward_pre_hook(lambda _, args: (args[0], indices, weights))
    wanted = hf(IDS).logits
    handle.remove()

    close(model.run_with_hooks(IDS, [(point, lambda value, hook: edited)]), wanted)


def test_choices_can_be_read_and_made() -> None:
    model = tiny("Qwen3MoeForCausalLM")
    hf: Any = model.hf_model
    at = "blocks.1.mlp.hook_expert_"
    _, cache = model.run_with_cache(IDS, [f"{at}indices", f"{at}weights"])
    gate = hf.model.layers[1].mlp.gate
    _, weights, indices = seen(gate, lambda: hf(IDS))
    assert torch.equal(cache[f"{at}indices"].flatten(0, 1), indices)
    assert torch.equal(cache[f"{at}weights"].flatten(0, 1), weights)

    swapped = (indices + 1) % 4
    experts = hf.model.layers[1].mlp.experts
    handle = experts.register_forward_pre_hook(lambda _, args: (args[0], swapped, args[2]))
    wanted = hf(IDS).logits
    handle.remove()
    found = model.run_with_hooks(IDS, [(f"{at}indices", lambda value, hook: (value + 1) % 4)])
    close(found, wanted)


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_one_experts_neurons_make_its_output(name: str) -> None:
    model = tiny(name)
    at = "blocks.0.mlp.experts.2."
    points = [f"{at}hook_{one}" for one in ("in", "pre", "pre_linear", "post", "out")]
    choice = "blocks.0.mlp.hook_expert_indices"
    _, cache = model.run_with_cache(IDS, [*points, choice, "blocks.0.ln2.hook_out"])
    chosen = (cache[choice] == 2).any(-1)
    assert torch.equal(cache[points[0]], cache["blocks.0.ln2.hook_out"][chosen])
    view: Any = model.blocks[0].mlp
    close(cache[points[1]], cache[points[0]] @ view.W_gate[2] + view.b_gate[2])
    close(cache[points[2]], cache[points[0]] @ view.W_in[2] + view.b_in[2])
    close(cache[points[4]], cache[points[3]] @ view.W_out[2] + view.b_out[2])
    assert torch.equal(model.W_in[0, 2], view.W_in[2])


def test_silencing_an_experts_neurons_takes_its_share_away() -> None:
    model = tiny("MixtralForCausalLM")
    at = "blocks.0.mlp."
    names = [f"{at}experts.1.hook_out", f"{at}hook_expert_indices", f"{at}hook_expert_weights"]
    _, clean = model.run_with_cache(IDS, [*names, "blocks.0.hook_mlp_out"])

    def silence(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    with model.hooks([(f"{at}experts.1.hook_post", silence)]):
        _, edited = model.run_with_cache(IDS, "blocks.0.hook_mlp_out")
    mine = clean[names[1]] == 1
    share = (clean[names[2]] * mine).sum(-1)[mine.any(-1)].unsqueeze(-1)
    wanted = clean["mlp_out", 0].clone()
    wanted[mine.any(-1)] -= share * clean[names[0]]
    close(edited["mlp_out", 0], wanted)


# --- latent attention ----------------------------------------------------------------------------


def test_effective_weights_of_latent_attention() -> None:
    model = tiny("DeepseekV3ForCausalLM", attention_bias=False)
    hf: Any = model.hf_model
    attn = hf.model.layers[0].self_attn
    _, cache = model.run_with_cache(IDS, ["blocks.0.ln1.hook_out", "blocks.0.attn.hook_q"])
    x = cache["blocks.0.ln1.hook_out"]
    latent = seen(attn.kv_a_proj_with_mqa, lambda: hf(IDS))
    width = attn.kv_lora_rank
    eps = attn.kv_a_layernorm.variance_epsilon
    scale = (latent[..., :width].pow(2).mean(-1) + eps).sqrt()[..., None, None]
    _, heads = model.run_with_cache(IDS, ["blocks.0.attn.hook_k", "blocks.0.attn.hook_v"])
    view = model.blocks[0].attn
    close(torch.einsum("bpm,hmd->bphd", x, view.W_V) / scale, heads["v", 0])
    keys = torch.einsum("bpm,hmd->bphd", x, view.W_K)
    own = attn.qk_nope_head_dim
    close(keys[..., :own] / scale, heads["k", 0][..., :own])
    close(keys[..., own:] + view.b_K[:, own:], heads["k", 0][..., own:])
    assert model.weight_state("blocks.0.attn.W_K") == "composed"
    assert heads["v", 0].shape[-1] == attn.v_head_dim
    assert model.cfg.d_head == attn.v_head_dim


def test_the_shared_part_of_a_latent_key_refuses_an_edit() -> None:
    model = tiny("DeepseekV3ForCausalLM")
    with pytest.raises(EditError, match="hook_rot_k"):
        model.run_with_hooks(IDS, [("blocks.0.attn.hook_k", lambda value, hook: value + 1.0)])


# --- encoders, decoders, towers ------------------------------------------------------------------

TASKS = (
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForNextSentencePrediction",
    "BertModel",
    "LlamaForSequenceClassification",
    "GPT2ForTokenClassification",
)


@pytest.mark.parametrize("name", TASKS)
def test_task_heads_are_read_too(name: str) -> None:
    import transformers

    base = {"Bert": "BertForMaskedLM", "Llam": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel"}
    hf_model = getattr(transformers, name)(tiny(base[name[:4]]).cfg.hf).eval()
    model = lensbridge.load(hf_model)
    kind = None if name == "BertModel" else "logits"
    found, cache = model.run_with_cache(IDS, return_type=kind)
    native = hf_model(IDS)
    if kind and "start_logits" in native:
        assert torch.equal(found[..., 0], native.start_logits)
    elif kind:
        assert torch.equal(found, native[0])
    last = native.last_hidden_state if kind is None else None
    assert last is None or torch.equal(cache["resid_post", -1], last)
    assert "blocks.0.attn.hook_pattern" in cache


def test_a_post_norm_stream_is_what_the_next_branch_reads() -> None:
    model = tiny("BertForMaskedLM")
    _, cache = model.run_with_cache(IDS)
    layer: Any = model.native.blocks[0].module
    norm = layer.attention.output.LayerNorm
    assert torch.equal(cache["resid_mid", 0], norm(cache["resid_pre", 0] + cache["attn_out", 0]))
    assert torch.equal(
        cache["resid_post", 0], layer.output.LayerNorm(cache["resid_mid", 0] + cache["mlp_out", 0])
    )


def test_an_encoder_and_a_decoder_with_cross_attention() -> None:
    model = tiny("T5ForConditionalGeneration", kernel="eager")
    hf: Any = model.hf_model
    inputs = inputs_for(hf)
    more = {"decoder_input_ids": inputs["decoder_input_ids"]}
    logits, cache = model.run_with_cache(inputs["input_ids"], **more)
    native = hf(**inputs, output_attentions=True)
    assert torch.equal(logits, native.logits)
    close(cache["decoder.1.cross_attn.hook_pattern"], native.cross_attentions[1], atol=1e-6)
    close(cache["encoder.1.attn.hook_pattern"], native.encoder_attentions[1], atol=1e-6)
    total = cache["decoder.0.hook_resid_mid"] + cache["decoder.0.hook_cross_attn_out"]
    close(cache["decoder.0.hook_resid_mid_cross"], total)
    table = hf.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    bias = cache["encoder.0.attn.hook_rel_pos_bias"][0]
    assert set(bias[1].flatten().tolist()) <= set(table[:, 1].tolist())
    assert torch.equal(cache["q", 1, "cross_attn"], cache["decoder.1.cross_attn.hook_q"])


def test_hooks_act_at_every_step_of_a_cached_decoder() -> None:
    model = tiny("T5ForConditionalGeneration")
    steps: list[tuple[int, ...]] = []

    def note(value: Tensor, hook: Any) -> None:
        steps.append(tuple(value.shape))

    options = {"do_sample": False, "verbose": False, "decoder_start_token_id": 1}
    with model.hooks([("decoder.0.cross_attn.hook_z", note)]):
        edited = model.generate(IDS, max_new_tokens=3, **options)
    assert {shape[1] for shape in steps} == {1}
    assert len(steps) == edited.shape[1] - 1
    assert torch.equal(edited, model.generate(IDS, max_new_tokens=3, **options))


def test_the_layers_of_a_model_that_only_sees_have_both_names() -> None:
    model = tiny("ViTModel")
    inputs = inputs_for(model.hf_model)
    _, cache = model.run_with_cache(inputs["pixel_values"], return_type=None)
    assert cache["vision.blocks.1.hook_resid_post"] is cache["resid_post", 1]
    with pytest.raises(UnknownPointError, match=r"encoder\.1"):
        cache["encoder.1.hook_resid_post"]


def test_two_towers_and_a_projector() -> None:
    clip = tiny("CLIPModel")
    inputs = inputs_for(clip.hf_model)
    _, cache = clip.run_with_cache(dict(inputs), return_type=None)
    vision: Any = clip.hf_model.get_submodule("vision_model.encoder.layers.1")
    found = seen(vision, lambda: clip.hf_model(**inputs))
    assert torch.equal(cache["vision.blocks.1.hook_resid_post"], found)
    assert cache["blocks.0.attn.hook_pattern"].shape[-1] == inputs["input_ids"].shape[1]

    llava = tiny("LlavaForConditionalGeneration")
    inputs = inputs_for(llava.hf_model)
    logits, cache = llava.run_with_cache(dict(inputs))
    hf: Any = llava.hf_model
    assert torch.equal(logits, hf(**inputs).logits)
    projector = llava.native.projector
    assert torch.equal(cache["projector.hook_out"], seen(projector, lambda: hf(**inputs)))


# --- hybrids -------------------------------------------------------------------------------------


def test_a_hybrids_layers_have_what_they_are() -> None:
    model = tiny("JambaForCausalLM")
    kinds = ["attn" if block.attn else "mixer" for block in model.native.blocks]
    assert set(kinds) == {"attn", "mixer"}
    logits, cache = model.run_with_cache(IDS)
    assert torch.equal(logits, model.hf_model(IDS).logits)
    for layer, kind in enumerate(kinds):
        added = cache[f"blocks.{layer}.hook_{kind}_out"]
        close(cache["resid_mid", layer], cache["resid_pre", layer] + added)
    attention, mixer = kinds.index("attn"), kinds.index("mixer")
    assert cache["pattern", attention].shape[-2:] == (7, 7)
    with pytest.raises(AbsentPointError):
        cache["pattern", mixer]
    with pytest.raises(WeightError, match=f"layers \\[{attention}\\]"):
        model.W_Q  # noqa: B018


def test_a_mixer_beside_attention_has_its_own_contribution() -> None:
    model = tiny("FalconH1ForCausalLM")
    _, cache = model.run_with_cache(IDS)
    both = cache["resid_pre", 0] + cache["attn_out", 0] + cache["mixer_out", 0]
    close(cache["resid_mid", 0], both)


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "BertModel", "T5ForConditionalGeneration", "ViTModel", "CLIPModel"]
)
def test_a_folder_is_opened_as_what_was_saved_there(name: str, tmp_path: Path) -> None:
    tiny(name).hf_model.save_pretrained(tmp_path)  # type: ignore[operator]
    model = lensbridge.load(tmp_path)
    assert type(model.hf_model).__name__ == name
    inputs = dict(inputs_for(model.hf_model))
    wanted, found = tiny(name).hf_model(**inputs)[0], model.hf_model(**inputs)[0]
    assert torch.equal(wanted, found)


@pytest.mark.parametrize("run", ["forward", "run_with_cache"])
def test_a_decoder_without_input_says_what_it_needs(run: str) -> None:
    model = tiny("T5ForConditionalGeneration")
    with pytest.raises(InputError, match="decoder_input_ids"):
        {"forward": model.forward, "run_with_cache": model.run_with_cache}[run](IDS)
    shifting = tiny("BartForConditionalGeneration")  # makes its decoder's ids of the encoder's
    assert isinstance(shifting(IDS), Tensor)


@pytest.mark.parametrize("short", ["mlp_out", "z", ["resid_post", "attn_out"]])
def test_a_short_name_that_no_layer_has_says_why(short: str | list[str]) -> None:
    mamba = tiny("MambaForCausalLM")
    with pytest.raises(AbsentPointError, match=r"No layer of this model has '\w+': MambaBlock has"):
        mamba.run_with_cache(IDS, names_filter=short)
