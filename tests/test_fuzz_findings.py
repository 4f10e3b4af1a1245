"""Faults that random configs and inputs showed, each by itself."""

from typing import Any

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from torch import Tensor

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.inputs.random import inputs_for


def tiny(name: str, **options: Any) -> Any:
    description = next(one for one in lensbridge_architectures() if name in one.classes)
    return tiny_model(description, name, **options)


# --- rows that are masked as a whole -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alibi", [True, False])
def test_patterns_of_padding_are_those_of_the_fused_kernel(alibi: bool, dtype: Any) -> None:
    """Falcon adds its mask to its biases, so a row of padding attends to everything alike."""
    hf = tiny("FalconForCausalLM", kernel="sdpa", alibi=alibi).to(dtype)
    model, ids = lensbridge.load(hf), torch.randint(5, 30, (2, 6))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        bare = hf(ids, attention_mask=mask).logits
        _, cache = model.run_with_cache(ids, ["pattern", "v", "z"], attention_mask=mask)
        for layer in range(model.cfg.n_layers):
            pattern, v = cache["pattern", layer], cache["v", layer]
            v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
            mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
            torch.testing.assert_close(mixed, cache["z", layer], rtol=1e-4, atol=1e-5)

        def edit(pattern: Tensor, hook: Any) -> Tensor:
            pattern[1, 0, -1, 0] += 0.5
            return pattern

        edited = model.run_with_hooks(
            ids, [("blocks.0.attn.hook_pattern", edit)], attention_mask=mask
        )
    torch.testing.assert_close(edited[0], bare[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(edited[1], bare[1])


def test_edited_scores_of_padding_are_used() -> None:
    hf = tiny("FalconForCausalLM", kernel="sdpa", alibi=True)
    model, ids = lensbridge.load(hf), torch.randint(5, 30, (1, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])

    def first(scores: Tensor, hook: Any) -> Tensor:
        scores[:, :, 0, 0] = 0.0
        return scores

    with torch.no_grad(), model.hooks([("blocks.0.attn.hook_attn_scores", first)]):
        _, cache = model.run_with_cache(ids, "blocks.0.attn.hook_pattern", attention_mask=mask)
    row = cache["blocks.0.attn.hook_pattern"][0, :, 0]
    assert torch.equal(row[:, 0], torch.ones(len(row)))
    assert not row[:, 1:].any()


# --- keywords that are handed on -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["GraniteMoeForCausalLM", "LlavaForConditionalGeneration", "LlamaForCausalLM"]
)
def test_keywords_of_the_model_inside_are_taken(name: str) -> None:
    hf = tiny(name)
    (_, first), *rest = inputs_for(hf).items()
    model = lensbridge.load(hf)
    with torch.no_grad():
        for options in ({"use_cache": True}, {"use_cache": False}, {"return_dict": True}):
            bare = hf(first, **dict(rest), **options).logits
            assert torch.equal(model(first, **dict(rest), **options), bare)
    with pytest.raises(TypeError, match="unexpected keyword 'use_cash'"):
        model(first, use_cash=True)
    with pytest.raises(TypeError, match="read by their names"):
        model(first, return_dict=False)


@pytest.mark.parametrize("name", ["RemBertForMaskedLM", "MegatronBertForMaskedLM"])
def test_keywords_that_nobody_reads_are_refused(name: str) -> None:
    """These classes take any keyword and hand none of them on."""
    model = lensbridge.load(tiny(name))
    with pytest.raises(TypeError, match="unexpected keyword 'use_cache'"):
        model(torch.randint(5, 30, (1, 4)), use_cache=True)


# --- embeddings as the input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "Gemma2ForCausalLM",
        "BloomForCausalLM",
        "BertForMaskedLM",
        "ElectraForMaskedLM",
    ],
)
def test_embeddings_that_are_the_input_are_a_term_of_the_stream(name: str) -> None:
    hf = tiny(name)
    model, ids = lensbridge.load(hf), torch.randint(5, 30, (2, 6))
    with torch.no_grad():
        embeds = hf.get_input_embeddings()(ids)
        _, cache = model.run_with_cache(embeds)
        _, of_ids = model.run_with_cache(ids)
    assert "hook_embed" not in cache
    for layer in (0, 1, -1):
        terms, labels = cache.decompose_resid(layer, return_labels=True, check=True)
        wanted, theirs = of_ids.decompose_resid(layer, return_labels=True)
        assert labels[0] == "embed"
        torch.testing.assert_close(terms.sum(0), wanted.sum(0), rtol=1e-4, atol=1e-4)
        if "embed_rest" in theirs:  # token types: part of the embedding here
            continue
        assert labels == theirs
        torch.testing.assert_close(terms, wanted, rtol=1e-4, atol=1e-4)
    full, labels = cache.get_full_resid_decomposition(return_labels=True)
    last = cache["resid_post", -1]
    torch.testing.assert_close(full.sum(0), last, rtol=1e-4, atol=1e-4)


def test_a_run_on_ids_still_asks_for_its_embeddings() -> None:
    model = lensbridge.load(tiny("GPT2LMHeadModel"))
    _, cache = model.run_with_cache(
        torch.randint(5, 30, (1, 4)), ["resid_pre", "resid_post", "attn_out", "mlp_out"]
    )
    with pytest.raises(lensbridge.LensbridgeError, match="hook_embed"):
        cache.decompose_resid()
