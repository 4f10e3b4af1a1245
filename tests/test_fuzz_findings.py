"""Faults that random configs and inputs showed, each by itself."""

from typing import Any

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from torch import Tensor

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError
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


# --- runs that start at a layer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("T5ForTokenClassification", 1, "the biases of positions"),
        ("UMT5ForTokenClassification", None, ""),  # every layer has biases of its own
        ("Zamba2ForCausalLM", 0, "read the embeddings beside the stream"),
        ("Zamba2ForCausalLM", 1, "read the embeddings beside the stream"),
        ("Gemma4ForCausalLM", 1, "read the embeddings beside the stream"),
    ],
)
def test_layers_that_read_more_than_the_stream_cannot_be_started_at(
    name: str, layer: int | None, message: str
) -> None:
    hf = tiny(name)
    model, ids = lensbridge.load(hf), torch.randint(5, 30, (2, 5))
    at = 1 if layer is None else layer
    with torch.no_grad():
        stream = model(ids, stop_at_layer=at)
        if layer is None:
            found = model(stream, start_at_layer=at)
            torch.testing.assert_close(found, hf(ids).logits, rtol=1e-4, atol=1e-5)
            return
        with pytest.raises(InputError, match=message):
            model(stream, start_at_layer=at)
        with pytest.raises(InputError, match=message):
            model.blocks[at](stream)
        after_layers = model(ids, stop_at_layer=2)
        if name == "Gemma4ForCausalLM":  # which takes no stream in the place of its embeddings
            with pytest.raises(InputError, match="needs the ids"):
                model(after_layers, start_at_layer=2)
            return
        after = model(after_layers, start_at_layer=2)
        torch.testing.assert_close(after, hf(ids).logits, rtol=1e-4, atol=1e-5)


# --- values that are written back ----------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_rotated_keys_that_are_written_back_change_no_bit(kernel: str) -> None:
    hf = tiny("HunYuanDenseV1ForCausalLM", kernel=kernel, num_attention_heads=2)
    model, ids = lensbridge.load(hf), torch.randint(5, 30, (2, 9))
    mask = torch.tensor([[1] * 9, [0] * 6 + [1] * 3])
    with torch.no_grad():
        bare = hf(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        for point in ("hook_rot_q", "hook_rot_k"):
            hooks = [(f"blocks.{i}.attn.{point}", lambda value, hook: value) for i in range(2)]
            found = model.run_with_hooks(ids, hooks, attention_mask=mask)
            assert torch.equal(found, model(ids, attention_mask=mask))
    torch.testing.assert_close(model(ids, attention_mask=mask)[0], bare[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6])
def test_heads_of_codegen_that_are_no_multiple_of_its_shards(heads: int) -> None:
    hf = tiny("CodeGenForCausalLM", n_head=heads, n_embd=heads * 8, rotary_dim=4)
    model, ids = lensbridge.load(hf), torch.randint(5, 30, (2, 5))
    kept: list[Tensor] = []
    attn = hf.transformer.h[0].attn
    handle = attn.qkv_proj.register_forward_hook(lambda _, args, out: kept.append(out))
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, ["q", "k", "v"])
        assert torch.equal(logits, hf(ids).logits)
    handle.remove()
    parts = kept[-1].view(2, 5, 4, 3 * heads * 2).split(heads * 2, dim=-1)
    for letter, part in zip("qvk", parts, strict=True):
        assert torch.equal(cache[letter, 0], part.reshape(2, 5, heads, 8))
    zeroed = model.run_with_hooks(ids, [(("v", 0), lambda v, hook: v * 0)])
    edited = kept[-1].view(2, 5, 4, 3, heads * 2).clone()
    edited[..., 1, :] = 0
    handle = attn.qkv_proj.register_forward_hook(lambda _, args, out: edited.view(out.shape))
    with torch.no_grad():
        torch.testing.assert_close(zeroed, hf(ids).logits)
    handle.remove()
