"""Positions after padding, caches beside `start_at_layer`, slices and new encoders."""

from typing import Any

import pytest
import torch
import transformer_lens as theirs
import transformer_lens.head_detector as their_detector
from peers.twins import TL, twins
from transformer_lens.pretrained.weight_conversions import convert_bert_weights
from transformer_lens.utilities import Slice
from transformer_lens.utilities.activation_functions import XIELU
from transformers import BertForPreTraining

import lensbridge.compat.transformer_lens as ours

pytestmark = pytest.mark.peers


def pair(name: str) -> tuple[Any, Any]:
    """A model of this package and TransformerLens's, with the same weights."""
    hf_model, classic = twins(name)
    return ours.HookedTransformer.from_pretrained_no_processing("x", hf_model=hf_model), classic


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 3])
def test_positions(offset: int) -> None:
    both = pair("GPT2LMHeadModel")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 1, 0, 1, 1, 0, 1]])
    tokens = torch.zeros(3, 7 - offset, dtype=torch.long)
    same(*(one.pos_embed(tokens, offset, attention_mask=mask) for one in both))
    same(*(one.pos_embed(tokens, offset) for one in both))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"])
def test_caches_of_keys(name: str) -> None:
    both = pair(name)
    ids = torch.randint(97, (2, 9))
    masks = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = []
    for library, model in zip((ours, theirs), both, strict=True):
        kind = library.cache.key_value_cache.TransformerLensKeyValueCache
        kept = kind.init_cache(model.cfg, "cpu", 2)
        model(ids[:, :6], past_kv_cache=kept, attention_mask=masks[0])
        kept.freeze()
        later = {"past_kv_cache": kept, "attention_mask": masks[1]}
        logits, cache = model.run_with_cache(ids[:, 6:], **later)
        _, _, _, whole = model.input_to_embed(ids[:, 6:], **later)
        again = model(
            cache["resid_pre", 1], start_at_layer=1, past_kv_cache=kept, attention_mask=whole
        )
        found.append((logits, again, whole))
    real = masks[1].bool()  # what a model computes at padding means nothing
    for mine, other in zip(*found, strict=True):
        same(
            mine[real].float() if mine.ndim > 2 else mine,
            other[real] if mine.ndim > 2 else other.int(),
        )


@pytest.mark.parametrize("chosen", [-1, (1, 4), [0, 2], torch.tensor([3, 1])])
def test_slices(chosen: Any) -> None:
    both = pair("GPT2LMHeadModel")
    ids = torch.randint(97, (3, 6))
    found = []
    for model, kind in zip(both, (ours.utils.Slice, Slice), strict=True):
        model.set_use_attn_result(True)
        _, cache = model.run_with_cache(ids)
        one = kind(chosen)
        found.append(
            [
                cache.accumulated_resid(layer=-1, pos_slice=one),
                cache.stack_neuron_results(-1, pos_slice=one, neuron_slice=kind([5, 1])),
                cache.stack_head_results(layer=-1, pos_slice=one),
                cache.get_neuron_results(1, neuron_slice=kind([2, 7]), pos_slice=one),
                cache.apply_slice_to_batch_dim(kind([2, 0]))["z", 1],
            ]
        )
    for mine, other in zip(*found, strict=True):
        same(mine, other)


@pytest.mark.parametrize("kind", ["previous_token", "duplicate_token", "induction"])
def test_detection_patterns(kind: str) -> None:
    ids = torch.randint(4, (1, 9))
    name = f"get_{kind}_head_detection_pattern"
    same(getattr(ours.head_detector, name)(ids), getattr(their_detector, name)(ids).float())


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_a_new_encoder_computes_what_theirs_does(direction: str) -> None:
    fields = {
        **TL,
        "attention_dir": direction,
        "act_fn": "gelu",
        "original_architecture": "BertForMaskedLM",
    }
    mine = ours.HookedEncoder({**fields, "tie_word_embeddings": True})
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    other = theirs.HookedEncoder(theirs.HookedTransformerConfig(**fields))
    whole = BertForPreTraining(mine.hf_model.config)
    whole.load_state_dict(mine.hf_model.state_dict(), strict=False)
    other.load_state_dict(convert_bert_weights(whole, other.cfg), strict=False)
    ids = torch.randint(97, (2, 8))
    torch.testing.assert_close(mine(ids), other(ids), atol=1e-4, rtol=1e-4)


def test_xielu() -> None:
    given = torch.linspace(-4, 4, 33)
    same(ours.utils.XIELU(1.5, 0.9, 0.25)(given), XIELU(1.5, 0.9, 0.25)(given))
