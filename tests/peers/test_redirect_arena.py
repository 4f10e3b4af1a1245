"""The steps of an interpretability course on both libraries: `clients/arena_*.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peers.redirected import require_equal, results_of

from lensbridge.compat.transformer_lens import HookedTransformer, HookedTransformerConfig

pytestmark = pytest.mark.peers

SIZES = {
    "n_layers": 2, "d_model": 24, "n_heads": 4, "d_head": 6, "d_mlp": 40, "d_vocab": 61,
    "n_ctx": 16, "device": "cpu", "default_prepend_bos": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "names": {"act_fn": "gelu_new"},
    "objects": {"act_fn": "gelu_new", "normalization_type": "LNPre"},
    "attention only": {
        "attn_only": True, "normalization_type": None, "use_attn_result": True, "seed": 398,
        "positional_embedding_type": "shortformer", "attention_dir": "causal", "d_mlp": None,
    },
    "brackets": {
        "act_fn": "relu", "attention_dir": "bidirectional", "d_vocab": 5, "d_vocab_out": 2,
        "n_layers": 3, "n_heads": 2, "d_head": 12, "use_attn_result": True, "use_hook_tokens": True,
    },
    "addition": {
        "act_fn": "relu", "normalization_type": None, "d_vocab": 12, "d_vocab_out": 11,
        "n_layers": 1, "n_ctx": 3,
    },
    "board": {"act_fn": "gelu", "normalization_type": "LNPre"},
}  # fmt: skip


def weights() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, more in CONFIGS.items():
        cfg = {**SIZES, **more}
        state = HookedTransformer(HookedTransformerConfig(**cfg)).state_dict()
        drawn = {
            one: torch.randn(value.shape, generator=generator) * 0.3 + float(one.endswith(".w"))
            for one, value in state.items()
        }
        found[name] = {"cfg": cfg, "state": drawn}
    return found


def same_results(client: str, folder: Path) -> dict[str, Any]:
    """What both give, which has to be finite and not zero."""
    ours, theirs = results_of(client, weights(), folder)
    require_equal(ours, theirs, 2e-5)
    for name, one in ours.items():
        if isinstance(one, torch.Tensor):
            assert one.isfinite().all(), name
            assert one.any(), name
    return ours


def test_transformers_from_scratch_and_trained_ones(tmp_path: Path) -> None:
    found = same_results("arena_transformers", tmp_path)
    names = [f"{kind}_{letter}" for kind in "Wb" for letter in "KOQV"]
    assert found["scratch: attn, state"] == names
    assert found["addition: losses"].diff().lt(0).all()


def test_induction_heads_and_indirect_objects(tmp_path: Path) -> None:
    found = same_results("arena_circuits", tmp_path)
    both = (found[f"induction: attributions, {name}"] for name in ("sum", "logits"))
    torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)
