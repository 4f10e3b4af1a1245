"""`cache.last_token`: the activation at each text's last token, against each text run alone."""

from functools import cache as once
from typing import Any

import pytest
import torch
from raw import record
from tiny_models import Shape, build, tokens

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [
    "The Eiffel Tower is in the city of",
    "John and Mary went to the store",
    "When Tom and Anna went to the school, Anna gave a book to",
]


@once
def demo() -> LensModel:
    return lensbridge.load("demo")


def alone(text: str) -> Any:
    """What goes in and out of every module of the bare model on one text."""
    tokenizer = demo().tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        return record(demo().hf_model, input_ids=torch.tensor([ids]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_text_has_its_own_last_token(side: Any) -> None:
    _, cache = demo().run_with_cache(TEXTS, padding_side=side)
    layers = demo().hf_model.transformer.h
    for row, text in enumerate(TEXTS):
        seen = alone(text)
        for layer in range(len(layers)):
            wanted = seen.outputs[layers[layer]][0, -1]
            found = cache.last_token("resid_post", layer)[row]
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            z = seen.inputs[layers[layer].attn.c_proj][0, -1]
            found = cache.last_token(f"blocks.{layer}.attn.hook_z")[row].flatten()
            torch.testing.assert_close(found, z, atol=1e-4, rtol=1e-4)
    assert cache.last_token("hook_embed").shape == (3, demo().cfg.d_model)
    assert torch.equal(cache.last_token(("resid_post", -1)), cache.last_token("resid_post", -1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_a_pattern_it_is_the_last_query(side: Any) -> None:
    _, cache = demo().run_with_cache(TEXTS, padding_side=side)
    found = cache.last_token("pattern", 2)
    assert found.shape == (3, demo().cfg.n_heads, cache["pattern", 2].shape[-1])
    for row, text in enumerate(TEXTS):
        _, single = demo().run_with_cache(text)
        wanted = single["pattern", 2][0, :, -1]
        real = cache.attention_mask[row].bool()
        torch.testing.assert_close(found[row][:, real], wanted, atol=1e-5, rtol=1e-4)
        assert float(found[row][:, ~real].abs().sum()) == 0


def test_without_padding_or_batch_it_is_the_last_column() -> None:
    _, cache = demo().run_with_cache(TEXTS[0])
    assert torch.equal(cache.last_token("mlp_out", 1), cache["mlp_out", 1][:, -1])
    _, single = demo().run_with_cache(TEXTS[0], remove_batch_dim=True)
    assert torch.equal(single.last_token("mlp_out", 1), cache["mlp_out", 1][0, -1])
    _, padded = demo().run_with_cache(TEXTS[:2])
    second = padded.apply_slice_to_batch_dim(1)
    assert torch.equal(second.last_token("resid_pre", 3), padded.last_token("resid_pre", 3)[1])
    model = lensbridge.load(build(Shape("llama")))
    _, ids = model.run_with_cache(tokens())
    assert torch.equal(ids.last_token("q", 0), ids["q", 0][:, -1])


def test_a_cut_cache_and_a_point_without_positions_are_refused() -> None:
    _, cut = demo().run_with_cache(TEXTS, pos_slice=[0])
    with pytest.raises(InputError, match="1 of 15 positions"):
        cut.last_token("resid_post", 0)
    _, cache = demo().run_with_cache(TEXTS)
    with pytest.raises(InputError, match="has a layer"):
        cache.last_token(("resid_post", 0), 1)
    with pytest.raises(KeyError, match="Did you mean"):
        cache.last_token("resid_pots", 1)
