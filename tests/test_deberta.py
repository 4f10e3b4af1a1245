"""DeBERTa v1: one projection to queries, keys and values, with biases that are held apart."""

from functools import cache
from typing import Any

import pytest
import torch
from lensbridge_adapters.deberta import DEBERTA, DEBERTA_RELATIVE
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import ProcessingError
from lensbridge.testing import tiny_model

IDS = torch.tensor([[5, 9, 17, 3, 11, 20], [8, 2, 30, 7, 12, 4]])
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
LAYER = "deberta.encoder.layer.1."


@cache
def opened(positions: bool) -> LensModel:
    return lensbridge.load(tiny_model(DEBERTA if positions else DEBERTA_RELATIVE, **RELATIVE))


EACH = pytest.mark.parametrize("positions", [True, False])


def kept(model: LensModel, path: str, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """What a module of the bare model reads and returns, and the output of the model."""
    found: list[Tensor] = []
    module = model.hf_model.get_submodule(LAYER + path)
    handle = module.register_forward_hook(lambda _, args, out: found.extend((args[0], out)))
    try:
        with torch.no_grad():
            output = model.hf_model(IDS, **options)
    finally:
        handle.remove()
    return found[0], found[1], output


@EACH
def test_queries_keys_and_values_are_those_that_attention_reads(positions: bool) -> None:
    model = opened(positions)
    attention = model.hf_model.get_submodule(LAYER + "attention.self")
    _, projected, _ = kept(model, "attention.self.in_proj")
    n, d = attention.num_attention_heads, attention.attention_head_size
    q, k, v = projected.view(*IDS.shape, n, 3 * d).split(d, dim=-1)
    _, cache_ = model.run_with_cache(IDS)
    at = "blocks.1.attn.hook_"
    assert torch.equal(cache_[f"{at}q"], q + attention.q_bias.view(n, d))
    assert torch.equal(cache_[f"{at}k"], k)
    assert torch.equal(cache_[f"{at}v"], v + attention.v_bias.view(n, d))


@EACH
def test_patterns_heads_and_neurons_are_the_models(positions: bool) -> None:
    model = opened(positions)
    z, _, output = kept(model, "attention.output.dense", output_attentions=True)
    neurons, _, _ = kept(model, "output.dense")
    _, cache_ = model.run_with_cache(IDS)
    assert torch.equal(cache_["blocks.1.attn.hook_pattern"], output.attentions[1])
    assert torch.equal(cache_["blocks.1.attn.hook_z"].flatten(-2), z)
    assert torch.equal(cache_["blocks.1.mlp.hook_post"], neurons)
    assert torch.equal(cache_["hook_logits"], output.logits)


@EACH
def test_an_edit_of_queries_is_one_of_their_bias(positions: bool) -> None:
    model = opened(positions)
    bias = model.hf_model.get_submodule(LAYER + "attention.self").q_bias
    step = torch.linspace(-1, 1, len(bias))
    with torch.no_grad():
        bias.add_(step)
        wanted = model.hf_model(IDS).logits
        bias.sub_(step)
    found = model.run_with_hooks(
        IDS,
        fwd_hooks=[
            ("blocks.1.attn.hook_q", lambda value, hook: value + step.view(value.shape[-2:]))
        ],
    )
    torch.testing.assert_close(found, wanted)


def test_the_bias_is_read_and_written_where_it_is_held() -> None:
    model = opened(False)
    held = model.hf_model.get_submodule(LAYER + "attention.self").v_bias
    found = model.weight("blocks.1.attn.b_V")
    assert torch.equal(found.flatten(), held)
    assert not model.weight("blocks.1.attn.b_K").any()


def test_factors_of_attention_are_left_as_they_are() -> None:
    with pytest.raises(ProcessingError, match="held apart"):
        opened(False).process_weights_(refactor_factored_attn_matrices=True)
    with pytest.raises(ProcessingError, match="held apart"):
        opened(False).process_weights_(fold_value_biases=True)
