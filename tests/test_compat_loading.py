"""Loading, configs and fresh models of the TransformerLens layer."""

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import Shape, build, tokens
from torch import Tensor, nn

import lensbridge.compat.transformer_lens as transformer_lens
from lensbridge.compat.transformer_lens import (
    HookedTransformer,
    HookedTransformerConfig,
    loading,
    utils,
)
from lensbridge.compat.transformer_lens.names_of_models import checkpoint_revision
from lensbridge.conformance.tiny import tiny_from
from lensbridge.errors import InputError, LoadError, UnsupportedArchitectureError, WeightError

STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


def close(found: Tensor, wanted: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("gpt2-small", "gpt2"),
        ("gpt2-medium", "gpt2-medium"),
        ("distilgpt2", "distilgpt2"),
        ("pythia-70m", "EleutherAI/pythia-70m"),
        ("pythia-160m-deduped", "EleutherAI/pythia-160m-deduped"),
        ("pythia-125m", "EleutherAI/pythia-160m"),
        ("gpt-neo-125M", "EleutherAI/gpt-neo-125M"),
        ("gpt-j-6B", "EleutherAI/gpt-j-6B"),
        ("opt-125m", "facebook/opt-125m"),
        ("llama-7b-hf", "huggyllama/llama-7b"),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("gemma-2b", "google/gemma-2b"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("qwen2-0.5b", "Qwen/Qwen2-0.5B"),
        ("bloom-560m", "bigscience/bloom-560m"),
        ("tiny-stories-1L-21M", "roneneldan/TinyStories-1Layer-21M"),
        ("stanford-gpt2-small-a", "stanford-crfm/alias-gpt2-small-x21"),
        ("someone/a-model", "someone/a-model"),
        ("someone/solu-2l", "someone/solu-2l"),
        ("someone/gelu-4l-tuned", "someone/gelu-4l-tuned"),
        ("medgemma-4b-it", "google/medgemma-4b-it"),
        ("demo", "demo"),
    ],
)
def test_short_names_mean_hub_ids(name: str, hub: str) -> None:
    assert loading.get_official_model_name(name) == hub


def test_a_short_name_means_one_model_only() -> None:
    seen: dict[str, str] = {}
    for hub, names in loading.MODEL_ALIASES.items():
        for name in {one.lower() for one in names}:
            assert seen.setdefault(name, hub) == hub


def test_folders_win_over_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(Shape("gpt2")).save_pretrained(tmp_path / "gpt2-small")
    monkeypatch.chdir(tmp_path)
    model = HookedTransformer.from_pretrained("gpt2-small", device="cpu")
    assert model.cfg.d_model == Shape("gpt2").d_model


@pytest.mark.parametrize(
    "name", ["solu-2l", "attn-only-1l", "gelu-4l", "NeelNanda/SoLU_2L512W_C4_Code"]
)
def test_what_is_no_huggingface_model_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(LoadError, match="not a HuggingFace model"):
        HookedTransformer.from_pretrained(name)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(LoadError, match="gpt2-small"):
        HookedTransformer.from_pretrained("gpt2-smal")


def test_checkpoints_are_revisions() -> None:
    assert checkpoint_revision("pythia-70m", 0, None) == "step0"
    assert checkpoint_revision("pythia-70m", 11, None) == "step1000"
    assert checkpoint_revision("pythia-70m", None, None, 512) == "step512"
    assert checkpoint_revision("stanford-gpt2-small-a", None, 100) == "checkpoint-100"
    assert checkpoint_revision("gpt2", None, None) is None
    with pytest.raises(InputError, match="nearest is 3000"):
        checkpoint_revision("pythia-70m", None, 3001)
    with pytest.raises(InputError, match="not both"):
        checkpoint_revision("pythia-70m", 1, 3000)
    with pytest.raises(InputError, match="154 checkpoints"):
        checkpoint_revision("pythia-70m", 154, None)
    with pytest.raises(LoadError, match="No checkpoints of"):
        checkpoint_revision("gpt2", None, 3000)


def test_the_revision_reaches_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> Any:
        asked.append({"name": name, **options})
        raise LoadError("stop here")

    monkeypatch.setattr("lensbridge.load", load)
    with pytest.raises(LoadError, match="stop here"):
        HookedTransformer.from_pretrained(
            "pythia-70m", checkpoint_value=3000, device="cpu", dtype="bf16", cache_dir="x"
        )
    assert asked == [
        {
            "name": "EleutherAI/pythia-70m",
            "revision": "step3000",
            "device": "cpu",
            "dtype": torch.bfloat16,
            "cache_dir": "x",
        }
    ]


def test_more_gpus_than_there_are() -> None:
    with pytest.raises(InputError, match="n_devices=64"):
        HookedTransformer.from_pretrained("demo", n_devices=64)


# --- model objects -------------------------------------------------------------------------------

FAMILIES = ("gpt2", "llama", "qwen2", "neox", "neox_sequential")


@pytest.mark.parametrize("family", FAMILIES)
def test_processing_leaves_the_users_model_alone(family: str) -> None:
    hf_model = build(Shape(family))
    before = copy.deepcopy(hf_model.state_dict())
    model = HookedTransformer.from_pretrained("mine", hf_model=hf_model)
    ids = tokens()
    close(model(ids).log_softmax(-1), hf_model(ids).logits.log_softmax(-1), atol=5e-4)
    assert model.hf_model is not hf_model
    assert all(torch.equal(before[name], value) for name, value in hf_model.state_dict().items())
    assert torch.equal(model.ln_final.w, torch.ones_like(model.ln_final.w))


def test_without_changes_the_object_itself_is_used() -> None:
    hf_model = build(Shape("gpt2"))
    model = HookedTransformer.from_pretrained_no_processing("mine", hf_model=hf_model)
    assert model.hf_model is hf_model


@pytest.mark.parametrize(
    "change", [{"dtype": "float64"}, {"dtype": torch.bfloat16}, {"first_n_layers": 1}, {"n_ctx": 9}]
)
def test_every_change_is_made_to_a_copy(change: dict[str, Any]) -> None:
    hf_model = build(Shape("gpt2"))
    config = hf_model.config.to_dict()
    model = HookedTransformer.from_pretrained_no_processing("mine", hf_model=hf_model, **change)
    assert model.hf_model is not hf_model
    assert hf_model.config.to_dict() == config
    assert hf_model.dtype == torch.float32
    assert len(hf_model.transformer.h) == 2
    assert hf_model.transformer.wpe.weight.shape[0] == 40


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_are_those_of_the_whole_model(family: str) -> None:
    hf_model = build(Shape(family, layers=3))
    whole = HookedTransformer.from_pretrained_no_processing("mine", hf_model=hf_model)
    part = HookedTransformer.from_pretrained_no_processing(
        "mine", hf_model=hf_model, first_n_layers=2
    )
    assert part.cfg.n_layers == 2
    ids = tokens()
    _, cache = whole.run_with_cache(ids)
    close(part.run_with_cache(ids)[1]["resid_post", 1], cache["resid_post", 1])
    wanted = whole.unembed(whole.ln_final(cache["resid_post", 1]))
    close(part(ids), wanted)
    with pytest.raises(InputError, match="has 3"):
        HookedTransformer.from_pretrained("mine", hf_model=hf_model, first_n_layers=4)


def test_the_first_layers_of_a_folder(tmp_path: Path) -> None:
    hf_model = build(Shape("qwen2", layers=3))
    hf_model.save_pretrained(tmp_path)
    part = HookedTransformer.from_pretrained_no_processing(
        str(tmp_path), first_n_layers=1, device="cpu"
    )
    assert sum(p.numel() for p in part.parameters()) < hf_model.num_parameters()
    ids = tokens()
    whole = HookedTransformer.from_pretrained_no_processing("mine", hf_model=hf_model)
    close(part.run_with_cache(ids)[1]["resid_post", 0], whole(ids, stop_at_layer=1))


def test_a_shorter_context() -> None:
    hf_model = build(Shape("gpt2"))
    model = HookedTransformer.from_pretrained_no_processing("mine", hf_model=hf_model, n_ctx=9)
    assert model.cfg.n_ctx == 9
    assert model.W_pos.shape[0] == 9
    close(model(tokens()), hf_model(tokens()).logits)
    with pytest.raises(InputError, match="learned 40"):
        HookedTransformer.from_pretrained("mine", hf_model=hf_model, n_ctx=41)
    rotary = build(Shape("llama"))
    longer = HookedTransformer.from_pretrained_no_processing("mine", hf_model=rotary, n_ctx=50)
    assert longer.cfg.n_ctx == 50
    assert longer(tokens(length=45)).shape[1] == 45


def test_a_copy_is_a_model_of_its_own() -> None:
    model = HookedTransformer.from_pretrained("demo", device="cpu")
    other = copy.deepcopy(model)
    other.add_hook("hook_embed", lambda value, hook: value * 0)
    assert not torch.allclose(other("a b"), model("a b"))
    other.reset_hooks()
    assert torch.equal(other("a b"), model("a b"))
    other.blocks[0].attn.b_O = torch.ones(128)
    assert not torch.allclose(other("a b"), model("a b"))


def test_shared_keys_are_repeated_for_each_query_head() -> None:
    hf_model = build(Shape("llama"))
    model = HookedTransformer.from_pretrained_no_processing("mine", hf_model=hf_model)
    weight = hf_model.model.layers[1].self_attn.k_proj.weight
    stored = weight.view(2, 6, -1).mT
    assert torch.equal(model.blocks[1].attn._W_K, stored)
    assert torch.equal(model.W_K[1], stored.repeat_interleave(2, 0))
    assert "blocks.1.attn._W_K" in model.state_dict()
    bridge = transformer_lens.build_bridge_from_module(hf_model)
    assert torch.equal(bridge.W_K[1], stored)
    with pytest.raises(WeightError, match="one copy for each"):
        model.blocks[1].attn.W_K = torch.zeros(4, 28, 6)


def test_bos_defaults_are_those_of_the_class() -> None:
    given = {
        family: HookedTransformer.from_pretrained("mine", hf_model=build(Shape(family)))
        for family in ("gpt2", "llama", "qwen2", "neox")
    }
    assert {family: one.cfg.default_prepend_bos for family, one in given.items()} == {
        "gpt2": True,
        "llama": True,
        "qwen2": False,
        "neox": False,
    }
    asked = HookedTransformer.from_pretrained("demo", default_prepend_bos=False, device="cpu")
    assert asked.to_tokens("The").tolist() == [[asked.to_single_token("The")]]


def test_the_users_tokenizer_stays_as_it_is() -> None:
    from transformers import AutoTokenizer

    from lensbridge.loading import demo_folder

    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    tokenizer.pad_token = None
    model = HookedTransformer.from_pretrained(
        "demo", tokenizer=tokenizer, default_padding_side="left", device="cpu"
    )
    assert model.to_tokens(["a", "a b"])[0, 0] == tokenizer.eos_token_id
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize(
    "name",
    [
        *("GPTJForCausalLM", "BloomForCausalLM", "FalconForCausalLM", "OPTForCausalLM"),
        *("Gemma2ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM", "Qwen3ForCausalLM"),
        *("MixtralForCausalLM", "DeepseekV3ForCausalLM", "MambaForCausalLM", "JambaForCausalLM"),
        *("FalconH1ForCausalLM", "RecurrentGemmaForCausalLM", "CohereForCausalLM"),
    ],
)
def test_families_of_every_kind_open_processed_and_predict_the_same(name: str) -> None:
    hf_model: Any = tiny_from(getattr(transformers, name), {}, torch.float32, "eager", 0)
    model = HookedTransformer.from_pretrained("mine", hf_model=hf_model)
    ids = tokens(2, 6)
    with torch.no_grad():
        wanted = hf_model(ids).logits.log_softmax(-1)
        logits, cache = model.run_with_cache(ids)
    close(logits.log_softmax(-1), wanted, atol=2e-3)
    assert model.blocks[0].hook_resid_pre.name in cache
    for weight, tensor in model.state_dict().items():
        assert torch.equal(utils.get_nested_attr(model, weight), tensor)


# --- encoders ------------------------------------------------------------------------------------


def test_an_encoder_and_an_encoder_decoder() -> None:
    bert: Any = tiny_from(transformers.BertForMaskedLM, {}, torch.float32, "eager", 0)
    model = transformer_lens.HookedEncoder.from_pretrained("mine", hf_model=bert)
    ids = tokens(1, 5)
    types = torch.tensor([[0, 0, 1, 1, 1]])
    close(model(ids, token_type_ids=types), bert(ids, token_type_ids=types).logits)
    _, cache = model.run_with_cache(ids)
    assert cache["pattern", 0].shape[-1] == 5
    t5: Any = tiny_from(transformers.T5ForConditionalGeneration, {}, torch.float32, "eager", 0)
    both = transformer_lens.HookedEncoderDecoder.from_pretrained("mine", hf_model=t5)
    close(both(ids, ids[:, :3]), t5(ids, decoder_input_ids=ids[:, :3]).logits)
    _, cache = both.run_with_cache(ids, ids[:, :3])
    assert cache["decoder.0.cross_attn.hook_pattern"].shape[-2:] == (3, 5)


def test_text_for_an_encoder_has_its_special_tokens_and_mask() -> None:
    from transformers import AutoTokenizer

    from lensbridge.loading import demo_folder

    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    sizes = {"vocab_size": len(tokenizer)}
    bert: Any = tiny_from(transformers.BertForMaskedLM, sizes, torch.float32, "eager", 0)
    model = transformer_lens.HookedEncoder.from_pretrained("x", hf_model=bert, tokenizer=tokenizer)
    rows = tokenizer(["the city", "a"], return_tensors="pt", padding=True)
    close(model(["the city", "a"]), bert(**rows).logits)
    close(model("a"), bert(**tokenizer(["a"], return_tensors="pt")).logits)


# --- configs and fresh models --------------------------------------------------------------------

SMALL = {"n_layers": 2, "d_model": 24, "n_ctx": 12, "d_head": 6, "d_vocab": 40}
ROTARY = {"positional_embedding_type": "rotary"}
RMS = {**ROTARY, "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu"}


@pytest.mark.parametrize(
    ("cfg", "kind"),
    [
        ({"act_fn": "gelu_new"}, "GPT2LMHeadModel"),
        ({"act_fn": "relu", "d_mlp": 50, "d_vocab_out": 13, "seed": 3}, "GPT2LMHeadModel"),
        ({"act_fn": "gelu", **ROTARY, "parallel_attn_mlp": True}, "GPTNeoXForCausalLM"),
        ({"act_fn": "gelu", **ROTARY, "rotary_dim": 2}, "GPTNeoXForCausalLM"),
        (RMS, "LlamaForCausalLM"),
        ({**RMS, "n_heads": 6, "n_key_value_heads": 2, "d_head": 8}, "LlamaForCausalLM"),
        ({"attn_only": True}, "PlainForCausalLM"),
        ({"act_fn": "solu", "normalization_type": None}, "PlainForCausalLM"),
        ({"act_fn": "relu", "positional_embedding_type": "shortformer"}, "PlainForCausalLM"),
        ({"act_fn": "relu", "n_heads": 2, "attention_dir": "bidirectional"}, "PlainForCausalLM"),
        ({"act_fn": "relu", "attn_scale": 3.0}, "PlainForCausalLM"),
        ({**RMS, "use_local_attn": True, "window_size": 4}, "MistralForCausalLM"),
        ({**RMS, "num_experts": 3, "experts_per_token": 2}, "MixtralForCausalLM"),
    ],
)
def test_a_fresh_model_is_what_its_config_says(cfg: dict[str, Any], kind: str) -> None:
    asked = HookedTransformerConfig.unwrap({**SMALL, **cfg})
    model = HookedTransformer(asked)
    assert type(model.hf_model).__name__ == kind
    skipped = ("device", "original_architecture", "n_params", "init_weights", "attn_types")
    for name, value in asked.to_dict().items():
        found = vars(model.cfg)[name]
        if name in ("use_local_attn", "final_rms", *skipped):
            continue
        assert found == value or (name == "attn_scale" and found == pytest.approx(value)), name
    logits, cache = model.run_with_cache(torch.randint(40, (2, 9)))
    assert logits.shape == (2, 9, asked.d_vocab_out)
    shape = (2, 9, asked.n_heads, asked.d_head)
    assert cache["q", 1].shape == shape
    if asked.rotary_dim and asked.rotary_dim < asked.d_head:
        same = cache["rot_q", 1][..., asked.rotary_dim :] == cache["q", 1][..., asked.rotary_dim :]
        assert same.all()
        assert not torch.equal(cache["rot_q", 1], cache["q", 1])
    if asked.window_size:
        assert (cache["pattern", 0][..., 8, :5] == 0).all()


COURSE = {"attn_only": True, "normalization_type": None, "positional_embedding_type": "shortformer"}


def test_a_plain_decoder_by_hand() -> None:
    """Attention alone, without norms; positions are in queries and keys only."""
    model = HookedTransformer({**SMALL, **COURSE, "seed": 1})
    ids = torch.randint(40, (2, 7))
    x, places = model.W_E[ids], model.W_pos[:7]
    future = torch.ones(7, 7).triu(1).bool()
    for layer in range(2):
        q, k = (
            torch.einsum("bpm,hmd->bhpd", x + places, w[layer]) + b[layer][:, None]
            for w, b in ((model.W_Q, model.b_Q), (model.W_K, model.b_K))
        )
        v = torch.einsum("bpm,hmd->bhpd", x, model.W_V[layer]) + model.b_V[layer][:, None]
        pattern = (q @ k.mT / 6**0.5).masked_fill(future, -torch.inf).softmax(-1)
        x = x + torch.einsum("bhpd,hdm->bpm", pattern @ v, model.W_O[layer]) + model.b_O[layer]
    logits, cache = model.run_with_cache(ids)
    close(logits, x @ model.W_U + model.b_U)
    close(cache["pattern", 1], pattern)
    parts, labels = cache.decompose_resid(return_labels=True, check=True)
    assert labels == ["embed", "pos_embed", "embed_rest", "0_attn_out", "1_attn_out"]
    close(parts[1], -parts[2])  # the stream has no positions


def test_a_plain_decoder_generates_with_its_cache_and_padding() -> None:
    model = HookedTransformer({**SMALL, **COURSE, "seed": 1})
    ids = torch.randint(40, (1, 4))
    wanted = ids
    for _ in range(5):
        wanted = torch.cat([wanted, model(wanted)[:, -1:].argmax(-1)], -1)
    options = {"max_new_tokens": 5, "do_sample": False, "verbose": False}
    assert torch.equal(model.generate(ids, **options), wanted)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], -1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    close(model(padded, attention_mask=mask)[:, 2:], model(ids))


def test_a_seed_makes_the_same_model() -> None:
    cfg = {**SMALL, "act_fn": "relu", "seed": 5}
    one, two = HookedTransformer(cfg), HookedTransformer(cfg)
    assert torch.equal(one.W_E, two.W_E)
    assert not torch.equal(one.W_E, HookedTransformer({**cfg, "seed": 6}).W_E)
    assert 0.5 < one.W_E.std() / one.cfg.initializer_range < 2


def test_a_fresh_model_learns() -> None:
    model = HookedTransformer({**SMALL, "act_fn": "relu", "seed": 0})
    ids = torch.randint(40, (4, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = model(ids, return_type="loss")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_norms_without_gain_stay_without_it() -> None:
    model = HookedTransformer({**SMALL, "act_fn": "relu", "normalization_type": "LNPre"})
    assert model.cfg.normalization_type == "LNPre"
    norms = [one for one in model.hf_model.modules() if isinstance(one, nn.LayerNorm)]
    assert norms
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


@pytest.mark.parametrize(
    ("cfg", "reason"),
    [
        ({"act_fn": "solu_ln"}, "solu"),
        ({"act_fn": "relu", "positional_embedding_type": "alibi"}, "alibi"),
        ({**RMS, "rotary_dim": 2}, "rotary_dim"),
        ({**RMS, "attn_scale": 3.0}, "attn_scale"),
    ],
)
def test_what_no_class_computes_is_refused(cfg: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        HookedTransformer({**SMALL, **cfg})


def test_configs() -> None:
    cfg = HookedTransformerConfig.from_dict({**SMALL, "act_fn": "relu"})
    assert (cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out) == (4, 96, 40)
    assert cfg.attn_scale == 6**0.5
    assert cfg.n_params == 2 * (4 * 24 * 24 + 2 * 24 * 96)
    assert cfg.to_dict()["d_model"] == 24
    assert HookedTransformerConfig.unwrap(cfg) is cfg
    with pytest.raises(InputError, match="n_layers"):
        HookedTransformerConfig.from_dict({**SMALL, "n_layer": 3})
    with pytest.raises(InputError, match="act_fn"):
        HookedTransformerConfig.from_dict(SMALL)
    with pytest.raises(InputError, match="float99"):
        HookedTransformerConfig(**SMALL, act_fn="relu", dtype="float99")


def test_a_config_without_weights() -> None:
    cfg = loading.get_pretrained_model_config("demo")
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.act_fn) == (4, 128, 4, "gelu_new")


def test_every_name_is_where_notebooks_import_it_from() -> None:
    package = transformer_lens.__name__
    for module, name in (
        ("ActivationCache", "ActivationCache"),
        ("FactoredMatrix", "FactoredMatrix"),
        ("HookedTransformer", "HookedTransformer"),
        ("HookedTransformerConfig", "HookedTransformerConfig"),
        ("HookedEncoder", "HookedEncoder"),
        ("SVDInterpreter", "SVDInterpreter"),
        ("hook_points", "HookPoint"),
        ("hook_points", "HookedRootModule"),
        ("utils", "get_act_name"),
        ("utilities", "test_prompt"),
        ("patching", "generic_activation_patch"),
        ("head_detector", "detect_head"),
        ("evals", "ioi_eval"),
        ("loading_from_pretrained", "get_official_model_name"),
    ):
        found = vars(importlib.import_module(f"{package}.{module}"))[name]
        assert vars(transformer_lens).get(name, found) is found
