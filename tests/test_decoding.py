"""What is kept of a generation, and what hooks see in it, against runs on the finished ids."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from test_core_set import built_in
from test_inputs import padded
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import HookNeverFiredError, InputError
from lensbridge.inputs.random import inputs_for
from lensbridge.interventions import Steer
from lensbridge.testing import tiny_model

NEW = 4
QUIET: dict[str, Any] = {"max_new_tokens": NEW, "verbose": False, "do_sample": False}


def same(found: Any, wanted: Any, tolerance: float = 5e-4) -> None:
    assert set(found) == set(wanted)
    for name in wanted:
        one, other = found[name].float(), wanted[name].float()
        assert one.shape == other.shape, name
        if name.endswith("rel_pos_bias"):  # keys that were not there yet have no bias
            one, other = (torch.where(found[name].isinf(), 0.0, each) for each in (one, other))
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "neox"])
def test_the_cache_of_a_generation_is_that_of_the_finished_ids(family: str, cached: bool) -> None:
    model = lensbridge.load(build(Shape(family)))
    _, ids, mask = padded("left")
    found, cache = model.generate(
        ids,
        attention_mask=mask,
        return_cache=True,
        use_past_kv_cache=cached,
        stop_at_eos=False,
        **QUIET,
    )
    plain = model.generate(ids, attention_mask=mask, stop_at_eos=False, **QUIET)
    assert torch.equal(found, plain)
    longer = torch.cat([mask, mask.new_ones(len(mask), NEW)], dim=1)
    # generate() counts positions from each row's first token
    positions = (longer.cumsum(-1) - 1).clamp(min=0)
    _, wanted = model.run_with_cache(found, attention_mask=longer, position_ids=positions)
    same(cache, wanted)
    assert torch.equal(cache.tokens, found)
    assert torch.equal(cache.attention_mask, longer)


DECODERS = (
    "LlamaForCausalLM",
    "Gemma2ForCausalLM",
    "MixtralForCausalLM",
    "DeepseekV3ForCausalLM",
    "MambaForCausalLM",
    "JambaForCausalLM",
)


@pytest.mark.parametrize("name", DECODERS)
def test_families(name: str) -> None:
    hf = tiny_model(built_in(name), name)
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (2, 5))
    found, cache = model.generate(ids, return_cache=True, stop_at_eos=False, **QUIET)
    with torch.no_grad():
        _, wanted = model.run_with_cache(found)
    same(cache, wanted, 2e-3)
    assert cache["resid_post", 0].shape[1] == 5 + NEW


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_encoder_decoders(name: str, cached: bool) -> None:
    hf = tiny_model(built_in(name), name)
    hf.generation_config.decoder_start_token_id = 2
    hf.generation_config.forced_eos_token_id = None
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    seen: dict[str, list[Any]] = {"encoder": [], "decoder": []}

    def look(value: Tensor, hook: Any) -> None:
        stack = hook.name.partition(".")[0]
        seen[stack].append((hook.step, hook.phase, hook.positions, hook.finished.tolist()))

    with model.hooks([(["encoder.0.hook_resid_pre", "decoder.0.hook_resid_pre"], look)]):
        found, cache = model.generate(
            ids,
            attention_mask=mask,
            return_cache=True,
            stop_at_eos=False,
            use_past_kv_cache=cached,
            **QUIET,
        )
    with torch.no_grad():
        _, wanted = model.run_with_cache(ids, attention_mask=mask, decoder_input_ids=found)
    same(cache, wanted)
    assert len(seen["encoder"]) == 1
    assert seen["encoder"][0][2].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    for step, (at, phase, positions, finished) in enumerate(seen["decoder"]):
        assert (at, phase) == (step, "decode" if cached and step else "prefill")
        first = step if cached else 0
        assert positions.tolist() == [list(range(first, step + 1))] * 2
        assert finished == [False, False]
    steer = Steer("decoder.0.hook_resid_post", torch.randn(32) * 5, positions=[0, 2])
    outputs = [
        model.generate(
            ids,
            attention_mask=mask,
            interventions=[steer],
            stop_at_eos=False,
            use_past_kv_cache=kept,
            **QUIET,
        )
        for kept in (True, False)
    ]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], found)
    ends = Steer("encoder.1.hook_resid_post", torch.randn(32) * 5, positions="last")
    with torch.no_grad():
        model.generate(ids, attention_mask=mask, interventions=[ends], **QUIET)


@pytest.mark.parametrize("cached", [True, False])
def test_speech(cached: bool) -> None:
    """Whisper: the input is no text, and what `generate` gives leaves the start token out."""
    hf = tiny_model(built_in("WhisperForConditionalGeneration"))
    hf.generation_config.decoder_start_token_id = 2
    model, sound = lensbridge.load(hf), inputs_for(hf)["input_features"]
    options = {"stop_at_eos": False, "use_past_kv_cache": cached, **QUIET}
    found, cache = model.generate(sound, return_cache=True, **options)
    plain = hf.generate(
        input_features=sound,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=model.cfg.d_vocab,
        pad_token_id=0,
    )
    assert torch.equal(found, plain)
    ids = torch.cat([torch.full((len(found), 1), 2), found], dim=1)
    with torch.no_grad():
        _, wanted = model.run_with_cache(sound, decoder_input_ids=ids)
    same(cache, wanted)
    assert torch.equal(model.generate({"input_features": sound}, **options), plain)
    steer = Steer("decoder.0.hook_resid_post", torch.randn(model.cfg.d_model) * 5, positions=1)
    assert not torch.equal(model.generate(sound, interventions=[steer], **options), plain)


def test_what_interventions_made_is_in_the_cache() -> None:
    model, ids = lensbridge.load(build(Shape("llama"))), tokens(2, 6)
    one = Steer(("resid_post", 0), torch.randn(28), positions=[3, 7], when="both")
    found, cache = model.generate(
        ids, interventions=[one], return_cache=True, stop_at_eos=False, **QUIET
    )
    with model.intervene(one), torch.no_grad():
        _, wanted = model.run_with_cache(found)
    same(cache, wanted)


def test_some_points_and_rows_that_end_early() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(3, 6)
    plain = model.generate(ids, stop_at_eos=False, **{**QUIET, "max_new_tokens": 6})
    eos = [int(plain[0, 7]), int(plain[1, 8])]
    seen: list[list[bool]] = []
    with model.hooks([(("resid_pre", 0), lambda x, hook: seen.append(hook.finished.tolist()))]):
        found, cache = model.generate(
            ids,
            eos_token_id=eos,
            return_cache=True,
            names_filter=["resid_post", "hook_logits"],
            **{**QUIET, "max_new_tokens": 6},
        )
    count = found.shape[1]
    wanted = [
        [any(int(one) in eos for one in row[6 : 6 + step]) for row in found]
        for step in range(count - 5)
    ]
    assert seen == wanted
    assert any(any(row) for row in wanted)
    _, whole = model.run_with_cache(found, names_filter=["resid_post", "hook_logits"])
    same(cache, whole)
    for cached in (True, False):
        seen.clear()
        with model.hooks([(("resid_pre", 0), lambda x, hook: seen.append(hook.finished.tolist()))]):
            model.generate(
                ids,
                eos_token_id=eos,
                use_past_kv_cache=cached,
                **{**QUIET, "max_new_tokens": 6},
            )
        assert seen == wanted[: len(seen)]


def test_one_new_token_and_embeddings() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens(2, 6)
    options = {**QUIET, "max_new_tokens": 1}
    found, cache = model.generate(ids, return_cache=True, stop_at_eos=False, **options)
    same(cache, model.run_with_cache(found)[1])
    embeds = hf.get_input_embeddings()(ids).detach()
    new, cache = model.generate(
        embeds, return_cache=True, names_filter="resid_post", stop_at_eos=False, **QUIET
    )
    whole = torch.cat([ids, new], dim=1)
    same(cache, model.run_with_cache(whole, names_filter="resid_post")[1])


def test_models_without_a_key_value_cache() -> None:
    """OpenAI's GPT is given an empty one all the same and reads everything again."""
    hf = tiny_model(built_in("OpenAIGPTLMHeadModel"))
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (2, 5))
    options = {"stop_at_eos": False, "names_filter": ["resid_post", "z"], **QUIET}
    found, cache = model.generate(ids, return_cache=True, **options)
    with torch.no_grad():
        _, wanted = model.run_with_cache(found, names_filter=["resid_post", "z"])
    same(cache, wanted)


def test_states_that_are_a_list_of_tensors() -> None:
    """RWKV: its passes go on from a state, and hooks know which columns they read."""
    hf = tiny_model(built_in("RwkvForCausalLM"))
    model, ids, seen = lensbridge.load(hf), torch.randint(3, 20, (2, 5)), []

    def look(value: Tensor, hook: Any) -> None:
        seen.append((hook.phase, hook.positions[0].tolist(), value.shape[1]))

    with model.hooks([(("resid_pre", 0), look)]):
        _, cache = model.generate(
            ids, return_cache=True, names_filter="resid_pre", stop_at_eos=False, **QUIET
        )
    prompt = ("prefill", [0, 1, 2, 3, 4], 5)
    assert seen == [prompt, *(("decode", [5 + i], 1) for i in range(NEW))]
    assert cache["resid_pre", 1].shape[1] == 5 + NEW


def test_pictures_and_their_projection_are_kept_once() -> None:
    hf = tiny_model(built_in("LlavaForConditionalGeneration"))
    model, given = lensbridge.load(hf), inputs_for(hf)
    ids = given.pop("input_ids")
    found, cache = model.generate(ids, return_cache=True, stop_at_eos=False, **given, **QUIET)
    with torch.no_grad():
        _, wanted = model.run_with_cache({"input_ids": found, **given})
    same(cache, wanted, 2e-3)
    assert "projector.hook_out" in cache


def test_what_has_no_cache_is_refused() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 6)
    with pytest.raises(InputError, match="a beam search moves them"):
        model.generate(ids, return_cache=True, num_beams=2, **QUIET)
    with pytest.raises(InputError, match="static key/value cache"):
        model.generate(ids, return_cache=True, cache_implementation="static", **QUIET)
    with pytest.raises(InputError, match="pass return_cache=True"):
        model.generate(ids, names_filter="resid_post", **QUIET)
    name = "MixtralForCausalLM"
    mixture = lensbridge.load(tiny_model(built_in(name), name))
    inside = "blocks.0.mlp.experts.0.hook_post"
    with pytest.raises(InputError, match="the tokens that an expert was given"):
        mixture.generate(ids % 20, return_cache=True, names_filter=inside, **QUIET)


def test_logits_at_every_position() -> None:
    """Bamba's own generation asks for those of the last position of the prompt alone."""
    hf = tiny_model(built_in("BambaForCausalLM"), "BambaForCausalLM")
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (2, 6))
    found, cache = model.generate(ids, return_cache=True, stop_at_eos=False, **QUIET)
    with torch.no_grad():
        _, wanted = model.run_with_cache(found)
    same(cache, wanted, 2e-3)
    _, nothing = model.generate(ids, return_cache=True, names_filter=[], **QUIET)
    assert len(nothing) == 0
    assert not hf._forward_pre_hooks


@pytest.mark.parametrize("cached", [True, False])
def test_what_not_every_position_passes_is_left_out_or_refused(cached: bool) -> None:
    """GIT puts pictures in front of the text, behind the embedding."""
    hf = tiny_model(built_in("GitForCausalLM"))
    model, given = lensbridge.load(hf), inputs_for(hf)
    ids = given.pop("input_ids")
    options = {**given, **QUIET, "stop_at_eos": False, "use_past_kv_cache": cached}
    if cached and Version(transformers.__version__) < Version("5.20"):  # a mask without pictures
        with pytest.raises(InputError, match="mask of its own making"):
            model.generate(ids, return_cache=True, **options)
        return
    found, cache = model.generate(ids, return_cache=True, **options)
    with torch.no_grad():
        _, wanted = model.run_with_cache({"input_ids": found, **given})
    same(cache, {name: wanted[name] for name in cache}, 2e-3)
    lacking = set(wanted) - set(cache)
    assert all("embed" in name for name in lacking)
    assert bool(lacking) == cached  # where the key/value cache counts the pictures too
    if cached:
        with pytest.raises(HookNeverFiredError, match="not every position passed it"):
            model.generate(ids, return_cache=True, names_filter="hook_embed", **options)
