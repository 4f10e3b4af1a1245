"""Positions that only queries and keys read, beside hooks on the plain decoder's own modules."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lensbridge.compat.transformer_lens import HookedTransformer

IDS = torch.tensor([[5, 17, 3, 9], [1, 2, 8, 11]])


@pytest.fixture
def model() -> HookedTransformer:
    return HookedTransformer(
        {
            "n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 5, "n_key_value_heads": 2,
            "n_ctx": 8, "d_vocab": 20, "d_mlp": 24, "act_fn": "relu", "normalization_type": None,
            "positional_embedding_type": "shortformer", "initializer_range": 0.3, "seed": 0,
            "device": "cpu",
        }
    )  # fmt: skip


@pytest.mark.parametrize("letter", "qk")
def test_an_edit_of_what_is_read_leaves_the_positions(
    model: HookedTransformer, letter: str
) -> None:
    projection = model.hf_model.layers[1].attn.get_submodule(f"{letter}_proj")

    def halved(module: Any, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return args[0] / 2, args[1]

    with projection.register_forward_pre_hook(halved):
        wanted = model.hf_model(IDS).logits
    point = f"blocks.1.hook_{letter}_input"
    found = model.run_with_hooks(IDS, fwd_hooks=[(point, lambda value, hook: value / 2)])
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, model(IDS), atol=1e-3)


def test_keys_are_ungrouped(model: HookedTransformer) -> None:
    grouped, keys = model(IDS), model.run_with_cache(IDS)[1]["k", 1]
    model.set_ungroup_grouped_query_attention(True)
    logits, cache = model.run_with_cache(IDS)
    torch.testing.assert_close(logits, grouped)
    assert torch.equal(cache["k", 1], keys.repeat_interleave(2, dim=2))

    def silence(value: Tensor, hook: Any) -> Tensor:
        value[:, :, 1] = 0
        return value

    edited = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_v", silence)])
    z = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_z", silence)])
    torch.testing.assert_close(edited, z)
    assert not torch.allclose(edited, logits, atol=1e-3)
