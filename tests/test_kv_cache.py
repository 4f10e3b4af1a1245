"""Continuing a key/value cache, whatever transformers calls it, against the bare model."""

import copy
from typing import Any

import pytest
import torch
from described import of_class
from raw import cache_argument
from tiny_models import Shape, build, tokens
from torch import Tensor
from transformers import DynamicCache

import lensbridge
from lensbridge.errors import HookError, InputError
from lensbridge.hooks import skip
from lensbridge.interventions import Zero
from lensbridge.native.kv_cache import cache_in, columns_in, name_of_cache

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tokens(2, 9)
QUIET: dict[str, Any] = {"do_sample": False, "verbose": False, "stop_at_eos": False}


def filled(model: Any, count: int, ids: Tensor = IDS) -> DynamicCache:
    """A cache of the first positions, made by the bare model."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :count], **{cache_argument(model): cache})
    return cache


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_decode_steps_are_known_for_what_they_are(family: str) -> None:
    model = build(Shape(family))
    lens = lensbridge.load(model)
    seen: list[tuple[int, str, list[int]]] = []

    def note(value: Tensor, hook: Any) -> None:
        seen.append((hook.step, hook.phase, hook.positions[0].tolist()))

    with lens.hooks([(("resid_post", 0), note)]):
        lens.generate(IDS, 3, **QUIET)
    assert seen == [
        (0, "prefill", list(range(9))),
        (1, "decode", [9]),
        (2, "decode", [10]),
    ]


def test_a_bare_call_with_its_cache_by_position() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    seen: list[list[int]] = []

    def note(value: Tensor, hook: Any) -> None:
        seen.append(hook.positions[0].tolist())

    with lens.hooks([(("resid_post", 0), note)]):
        model(IDS[:, 6:], None, None, filled(model, 6))
    assert seen == [list(range(6)), [6, 7, 8]]


@pytest.mark.parametrize("spelling", ["past_key_values", "cache", "input"])
def test_a_cache_under_each_of_its_names(spelling: str) -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    cache = filled(model, 6)
    wanted = model(IDS[:, 6:], **{cache_argument(model): copy.deepcopy(cache)}).logits
    if spelling == "input":
        found = lens({"input_ids": IDS[:, 6:], "past_key_values": cache})
    else:
        found = lens(IDS[:, 6:], **{spelling: cache})
    assert torch.equal(found, wanted)
    with pytest.raises(TypeError, match="pass one"):
        lens(IDS[:, 6:], past_key_values=cache, cache=cache)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen2"])
@pytest.mark.parametrize("start", [1, 2])
def test_the_first_late_start_may_continue_a_cache(family: str, start: int) -> None:
    model = build(Shape(family, layers=3))
    lens = lensbridge.load(model)
    skip._forms.clear()
    with torch.no_grad():
        _, whole = lens.run_with_cache(IDS, "resid_pre")
        wanted = lens(IDS)[:, 6:]
        rest = whole["resid_pre", start][:, 6:]
        cache = filled(model, 6)
        before = [layer.keys.clone() for layer in cache.layers]
        found = lens(rest, start_at_layer=start, past_key_values=cache)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b.keys[:, :, :6]) for a, b in zip(before, cache.layers, strict=True))
    assert all(layer.keys.shape[2] == 9 for layer in cache.layers[start:])


@pytest.mark.parametrize("name", ["Olmo2ForCausalLM", "SmolLM3ForCausalLM", "BloomForCausalLM"])
def test_late_starts_with_masks_and_biases_of_the_whole_length(name: str) -> None:
    lens = of_class(name)
    model, ids = lens.hf_model, IDS % 20 + 3
    skip._forms.clear()
    with torch.no_grad():
        _, whole = lens.run_with_cache(ids, "resid_pre")
        cache = filled(model, 6, ids)
        found = lens(whole["resid_pre", 1][:, 6:], start_at_layer=1, past_key_values=cache)
        wanted = lens(ids)[:, 6:]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("held", [5, 8, 9])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generate_continues_a_cache(family: str, held: int) -> None:
    model = build(Shape(family))
    lens = lensbridge.load(model)
    double = [(("resid_post", 0), lambda value, hook: value * 2)]
    seen: list[list[int]] = []
    note = (("resid_post", 1), lambda value, hook: seen.append(hook.positions[0].tolist()))
    cache = filled(model, held)
    wanted = lens.generate(IDS, 4, **QUIET)
    assert torch.equal(lens.generate(IDS, 4, past_key_values=copy.deepcopy(cache), **QUIET), wanted)
    with lens.hooks([*double, note]):
        found = lens.generate(IDS, 4, past_key_values=cache, **QUIET)
    assert seen[0] == list(range(min(held, 8), 9))
    own = filled(model, held)
    handle = lens.native.blocks[0].module.register_forward_hook(
        lambda m, args, out: out * 2 if isinstance(out, Tensor) else (out[0] * 2, *out[1:])
    )
    if held == 9:
        own.crop(-1)
    by_hand = model.generate(
        IDS, max_new_tokens=4, do_sample=False, eos_token_id=None, **{cache_argument(model): own}
    )
    handle.remove()
    assert torch.equal(found, by_hand)


def test_what_cannot_be_continued_is_said() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    with pytest.raises(InputError, match="holds 9 positions and the input has 4"):
        lens.generate(IDS[:, :4], 2, past_key_values=filled(model, 9), **QUIET)
    with pytest.raises(InputError, match="return_cache"):
        lens.generate(IDS, 2, past_key_values=filled(model, 4), return_cache=True, **QUIET)
    edit = Zero(("z", 0), positions=[1])
    with pytest.raises(InputError, match="key/value cache"):
        lens.generate(IDS, 2, past_key_values=filled(model, 4), interventions=[edit], **QUIET)


def test_a_state_that_does_not_say_where_it_is() -> None:
    lens = of_class("RwkvForCausalLM")
    ids = IDS % 20 + 3
    with torch.no_grad():
        state = lens.hf_model(ids[:, :5], use_cache=True).state

    def place(value: Tensor, hook: Any) -> None:
        _ = hook.positions

    with lens.hooks([(("resid_post", 0), lambda value, hook: None)]):
        lens.hf_model(ids[:, 5:], state=state, use_cache=True)
    with (
        pytest.raises(HookError, match="does not say how many positions"),
        lens.hooks([(("resid_post", 0), place)]),
    ):
        lens.hf_model(ids[:, 5:], state=state, use_cache=True)


def test_the_names_of_a_cache() -> None:
    model = build(Shape("llama"))
    cache = filled(model, 3)
    assert columns_in(cache) == 3
    assert cache_in({"past_key_values": None, "cache": cache}) is cache
    assert cache_in({"state": torch.zeros(2)}) is None  # a robot's state is no cache
    assert name_of_cache({"input_ids"}) is None
    assert columns_in({"slen": 4}) == 4
