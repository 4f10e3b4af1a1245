"""Keys and values that are kept, and generation in pieces, against runs in one go."""

from inspect import signature
from typing import Any

import pytest
import torch
from tiny_models import Shape, build
from torch import Tensor
from transformers import DynamicCache

from lensbridge.compat.transformer_lens import HookedTransformer, TransformerLensKeyValueCache
from lensbridge.compat.transformer_lens.past_key_value_caching import (
    HookedTransformerKeyValueCache,
)
from lensbridge.errors import InputError
from lensbridge.native.kv_cache import name_of_cache

PROMPT = "The Eiffel Tower is in the city of"
GREEDY: dict[str, Any] = {"do_sample": False, "verbose": False}


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("demo", device="cpu")


@pytest.fixture(scope="module")
def ids(model: HookedTransformer) -> Tensor:
    return model.to_tokens(PROMPT)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def empty(model: HookedTransformer, rows: int = 1) -> TransformerLensKeyValueCache:
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)


# --- keys and values -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["demo", "llama"])
def test_a_run_goes_on_where_the_last_one_stopped(family: str, model: HookedTransformer) -> None:
    if family != "demo":
        hf_model = build(Shape(family))
        model = HookedTransformer.from_pretrained_no_processing(family, hf_model=hf_model)
    ids = torch.randint(3, 60, (2, 8))
    whole, full = model.run_with_cache(ids)
    kept = empty(model, 2)
    assert kept[0].past_keys.shape[:2] == (2, 0)
    first = model(ids[:, :5], past_kv_cache=kept)
    second, cache = model.run_with_cache(ids[:, 5:], past_kv_cache=kept)
    close(torch.cat([first, second], 1), whole)
    close(cache["resid_post", 1], full["resid_post", 1][:, 5:])
    close(cache["pattern", 1], full["pattern", 1][:, :, 5:])
    native = DynamicCache()
    name = name_of_cache(signature(model.hf_model.forward).parameters)
    model.hf_model(ids, **{name: native})
    assert len(kept.entries) == model.cfg.n_layers
    for entry, layer in zip(kept.entries, native.layers, strict=True):
        close(entry.past_keys, layer.keys.transpose(1, 2))
        close(entry.past_values, layer.values.transpose(1, 2))
    assert kept.previous_attention_mask.tolist() == [[1] * 8] * 2


def test_a_frozen_cache_is_a_prefix_of_many_runs(model: HookedTransformer, ids: Tensor) -> None:
    kept = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu")
    model(ids[:, :4], past_kv_cache=kept)
    kept.freeze()
    for _ in range(2):
        close(model(ids[:, 4:], past_kv_cache=kept), model(ids)[:, 4:])
        assert kept[2].past_keys.shape[1] == 4
    close(
        model.input_to_embed(ids[:, 4:], past_kv_cache=kept)[0],
        model(ids, stop_at_layer=0)[:, 4:],
    )
    kept.unfreeze()
    model(ids[:, 4:5], past_kv_cache=kept)
    assert kept[2].past_keys.shape[1] == 5


def test_padding_stays_masked(model: HookedTransformer, ids: Tensor) -> None:
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids[:, :4]], -1)
    kept = empty(model)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    model(padded, attention_mask=mask, past_kv_cache=kept)
    close(model(ids[:, 4:], past_kv_cache=kept), model(ids)[:, 4:])


def test_what_a_cache_of_keys_refuses(model: HookedTransformer, ids: Tensor) -> None:
    kept = empty(model, 3)
    with pytest.raises(InputError, match="batch_size=3, not 1"):
        model(ids, past_kv_cache=kept)
    kept = empty(model)

    def fail(value: Tensor, hook: Any) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        model.run_with_hooks(ids, past_kv_cache=kept, fwd_hooks=[("hook_embed", fail)])
    with pytest.raises(InputError, match="was interrupted"):
        model(ids, past_kv_cache=kept)


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_pieces_make_the_whole(
    model: HookedTransformer, ids: Tensor, use_past_kv_cache: bool
) -> None:
    options = {**GREEDY, "stop_at_eos": False, "use_past_kv_cache": use_past_kv_cache}
    whole = model.generate(ids, max_new_tokens=7, **options)
    pieces = list(model.generate_stream(ids, 7, max_tokens_per_yield=3, **options))
    assert [piece.shape[1] for piece in pieces] == [ids.shape[1] + 1, 3, 3]
    assert torch.equal(torch.cat(pieces, -1), whole)
    by_text = list(model.generate_stream(PROMPT, 7, max_tokens_per_yield=3, **options))
    assert torch.equal(torch.cat(by_text, -1), whole)


def test_rows_end_where_they_do_in_one_go(model: HookedTransformer, ids: Tensor) -> None:
    rows = torch.cat([ids, model.to_tokens("The bus was in the city. The Tower was")[:, :9]])
    stop = int(model.generate(rows, max_new_tokens=3, **GREEDY)[0, -1])
    options = {**GREEDY, "eos_token_id": stop}
    whole = model.generate(rows, max_new_tokens=8, **options)
    pieces = torch.cat(list(model.generate_stream(rows, 8, max_tokens_per_yield=2, **options)), -1)
    assert (whole == stop).any()
    for one, two in zip(whole.tolist(), pieces.tolist(), strict=True):
        end = one.index(stop) if stop in one[9:] else len(one)
        assert one[:end] == two[:end]


def test_hooks_meet_the_prompt_once(model: HookedTransformer, ids: Tensor) -> None:
    seen: list[int] = []

    def note(value: Tensor, hook: Any) -> None:
        seen.append(value.shape[1])

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", note)]):
        list(model.generate_stream(ids, 6, max_tokens_per_yield=2, stop_at_eos=False, **GREEDY))
    assert seen == [ids.shape[1], 1, 1, 1, 1, 1]


def test_lists_are_not_streamed(model: HookedTransformer) -> None:
    with pytest.raises(InputError, match="to_tokens"):
        model.generate_stream(["a", "b"])


def test_logits_and_activations_of_what_was_generated(
    model: HookedTransformer, ids: Tensor
) -> None:
    options = {**GREEDY, "max_new_tokens": 4, "stop_at_eos": False}
    found = model.generate(ids, output_logits=True, **options)
    close(torch.stack(found.logits, 1), model(found.sequences)[:, -5:-1])
    text, cache = model.generate(PROMPT, return_cache=True, **options)
    assert text == model.generate(PROMPT, **options)
    wanted = model.run_with_cache(found.sequences)[1]
    assert set(wanted) == set(cache)
    close(cache["resid_post", 2], wanted["resid_post", 2])
    only = model.generate(
        PROMPT, return_cache=True, names_filter="blocks.1.hook_mlp_out", **options
    )
    assert list(only[1]) == ["blocks.1.hook_mlp_out"]


def test_embeddings_of_what_was_generated(model: HookedTransformer, ids: Tensor) -> None:
    wte = model.hf_model.get_input_embeddings()
    whole = model.generate(ids, max_new_tokens=4, **GREEDY)
    wanted = wte(whole)
    found = model.generate(PROMPT, max_new_tokens=4, return_type="embeds", **GREEDY)
    assert torch.equal(found, wanted)
    for return_type in ("input", "embeds"):
        found = model.generate(wte(ids), max_new_tokens=4, return_type=return_type, **GREEDY)
        assert torch.equal(found, wanted)
    new = model.generate(wte(ids), max_new_tokens=4, return_type="tokens", **GREEDY)
    assert torch.equal(new, whole[:, ids.shape[1] :])
    found, cache = model.generate(
        ids, max_new_tokens=4, return_type="embeds", return_cache=True, **GREEDY
    )
    assert torch.equal(found[:, : cache["hook_embed"].shape[1]], cache["hook_embed"])
    assert not found.requires_grad
    sampled = model.generate(wte(ids), max_new_tokens=4, num_return_sequences=3, verbose=False)
    assert torch.equal(sampled[:, : ids.shape[1]], wte(ids).expand(3, -1, -1))
