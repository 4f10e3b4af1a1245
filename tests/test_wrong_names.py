"""Names and keywords that do not exist: each error says what to write instead."""

import pytest
import torch
from tiny_models import Shape, build, tokens
from word_tokenizer import words

import lensbridge
from lensbridge.compat.transformer_lens import HookedTransformer
from lensbridge.compat.transformer_lens import names_of_models as theirs
from lensbridge.errors import (
    HubError,
    InputError,
    LoadError,
    UnknownPointError,
    WeightError,
)
from lensbridge.hooked_model import HookedModel
from lensbridge.loading import aliases

CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model() -> lensbridge.LensModel:
    return lensbridge.load("demo")


def test_tokens_of_a_tokenizer_without_decoder_are_its_words() -> None:
    model = lensbridge.load(build(Shape("gpt2")), tokenizer=words("w1", "w2", "w3"))
    assert model.to_str_tokens("w1 w2 w3") == ["w1", "w2", "w3"]
    assert model.to_str_tokens(["w3 w1", "w2"]) == [["w3", "w1"], ["w2"]]
    assert model.to_str_tokens(torch.tensor([2, 1, 0])) == ["w2", "w1", "<unk>"]
    assert model.to_single_str_token(2) == "w2"
    assert model.to_string(model.to_tokens("w1 w2")[0]) == "w1 w2"
    assert [model.to_single_token(word) for word in model.to_str_tokens("w3 w2")] == [3, 2]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("resid_pots", "resid_post"),
        ("patern", "pattern"),
        ("attn_pattern", "pattern"),
        ("hook_resid_pots", "hook_resid_post"),
        ("mlp_ouput", "mlp_out"),
        ("hook_embd", "hook_embed"),
        ("blocks.1.attn.hook_zz", r"blocks\.1\.attn\.hook_z"),
        ("ln_final.hook_scal", r"ln_final\.hook_scale"),
    ],
)
def test_a_misspelt_point_has_a_suggestion(
    model: lensbridge.LensModel, wrong: str, right: str
) -> None:
    expected = rf"Did you mean .*'{right}'"
    with pytest.raises(UnknownPointError, match=expected):
        model.run_with_cache(tokens(), wrong)
    with pytest.raises(UnknownPointError, match=expected):
        model.run_with_hooks(tokens(), fwd_hooks=[(wrong, lambda value, hook: value)])
    _, cache = model.run_with_cache(tokens())
    with pytest.raises(KeyError, match=expected):
        cache[wrong]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf_model.modules())


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("fwd_hook", "Did you mean 'fwd_hooks'"),
        ("return_typ", "Did you mean 'return_type'"),
        ("name_filter", "Did you mean 'names_filter'"),
        ("stop_at", "Did you mean 'stop_at_layer'"),
        ("batch_size", "fewer rows"),
        ("past_kv_cache", "past_key_values"),
    ],
)
def test_a_wrong_keyword_of_a_run(model: lensbridge.LensModel, wrong: str, hint: str) -> None:
    for run in (model, model.forward, model.run_with_hooks, model.run_with_cache):
        with pytest.raises(TypeError, match=hint):
            run(tokens(), **{wrong: 2})


def test_keywords_of_another_method_say_which(model: lensbridge.LensModel) -> None:
    with pytest.raises(TypeError, match="run_with_hooks"):
        model(tokens(), fwd_hooks=[])
    with pytest.raises(TypeError, match="run_with_cache"):
        model(tokens(), names_filter="z")
    with pytest.raises(TypeError, match="all of them run in one batch"):
        model.generate(tokens(), batch_size=2)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("load_in_4bit", r"BitsAndBytesConfig\(load_in_4bit=True\)"),
        ("load_in_8bit", r"BitsAndBytesConfig\(load_in_8bit=True\)"),
        ("torch_dtype", "dtype"),
        ("devic", "Did you mean 'device'"),
        ("fold_ln_", "Did you mean 'fold_ln'"),
        ("n_devices", "device_map"),
        ("hf_model", r"load\(hf_model\)"),
    ],
)
def test_a_wrong_keyword_of_load(wrong: str, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        lensbridge.load("demo", **{wrong: True})


def test_messages_of_a_chat_need_a_template_and_a_list(model: lensbridge.LensModel) -> None:
    runs = (model, model.run_with_cache, model.generate, model.to_str_tokens, model.to_tokens)
    for run in runs:
        for given in (CHAT, [CHAT, CHAT]):
            with pytest.raises(InputError, match=r"no chat template.*tokenizer\.chat_template"):
                run(given)
        with pytest.raises(InputError, match=r"one message of a chat.*\[message\]"):
            run(CHAT[0])


def test_names_that_other_libraries_have_at_their_top() -> None:
    for name, hint in {
        "from_pretrained": r"lensbridge\.load\(name\)",
        "HookedTransformer": r"lensbridge\.load\(name\).*compat\.transformer_lens",
        "HookedSAETransformer": "compat.sae_lens",
        "lod": "'load'",
    }.items():
        with pytest.raises(AttributeError, match=hint):
            getattr(lensbridge, name)
    assert not hasattr(lensbridge, "__wrapped__")


@pytest.mark.parametrize("name", ["from_pretrained", "from_pretrained_no_processing", "load"])
def test_classes_and_models_say_how_a_model_is_opened(
    name: str, model: lensbridge.LensModel
) -> None:
    for one in (lensbridge.LensModel, HookedModel, model):
        assert not hasattr(one, name)
        assert name not in dir(one)
        with pytest.raises(AttributeError, match=r"lensbridge\.load\(name\)"):
            getattr(one, name)
    with pytest.raises(AttributeError, match="type object 'LensModel' has no attribute 'lod'"):
        _ = lensbridge.LensModel.lod
    assert HookedTransformer.from_pretrained("demo").cfg.n_layers == 4


def test_attributes_that_are_elsewhere(model: lensbridge.LensModel) -> None:
    for name, hint in {
        "transformer": r"model\.hf_model\.transformer",
        "lm_head": r"model\.hf_model\.lm_head",
        "config": r"model\.cfg",
        "run_with_cach": "'run_with_cache'",
        "hook_embed": "run_with_cache",
        "nothing_like_it": r"model\.hf_model",
    }.items():
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=hint):
            getattr(model, name)
    with pytest.raises(WeightError, match="W_gate"):
        _ = model.W_gate
    with pytest.raises(AttributeError, match=r"lens\.hf_model\.transformer"):
        _ = HookedTransformer.from_pretrained("demo").transformer


def test_points_of_views_say_what_they_are_and_other_names_what_to_write(
    model: lensbridge.LensModel,
) -> None:
    block = model.blocks[1]
    assert str(block.attn.hook_z) == str(model.explain("blocks.1.attn.hook_z"))
    assert str(block.ln1.hook_scale) == str(model.explain("blocks.1.ln1.hook_scale"))
    for view, name, hint in (
        (block.attn, "hook_zz", r"Did you mean 'hook_z'.*run_with_cache"),
        (block.attn, "W_q", "Did you mean 'W_Q'"),
        (block, "self_attn", "model.hf_model"),
        (model.embed, "hook_out", "run_with_cache"),
    ):
        assert not hasattr(view, name)
        with pytest.raises(AttributeError, match=hint):
            getattr(view, name)
    with pytest.raises(IndexError, match="no layer 9: the model has 4 layers"):
        model.blocks[9]
    with pytest.raises(WeightError, match="not gated"):
        _ = block.mlp.W_gate


def test_load_knows_the_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class StopError(Exception):
        pass

    def stop(source: str, options: object) -> None:
        asked.append(source)
        raise StopError

    monkeypatch.setattr("lensbridge.loading.checkpoint.from_pretrained", stop)
    for name, hub in {
        "gpt2-small": "gpt2",
        "GPT2-small": "gpt2",
        "pythia-160m-deduped": "EleutherAI/pythia-160m-deduped",
        "gemma-2b": "google/gemma-2b",
        "someone/something": "someone/something",
    }.items():
        with pytest.raises(StopError):
            lensbridge.load(name)
        assert asked.pop() == hub
    for official, names in theirs.MODEL_ALIASES.items():
        assert {aliases.hub_id_of(name) for name in names} == {official}
    with pytest.raises(LoadError, match="TransformerLens's format"):
        lensbridge.load("attn-only-1l")


def test_a_folder_goes_before_a_short_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(Shape("llama")).save_pretrained(tmp_path / "gpt2-small")
    monkeypatch.chdir(tmp_path)
    assert lensbridge.load("gpt2-small").cfg.original_architecture == "LlamaForCausalLM"


def test_an_unknown_short_name_has_a_suggestion() -> None:
    with pytest.raises(HubError, match="Did you mean 'gpt2-small'"):
        lensbridge.load("gpt2-smal", local_files_only=True)
