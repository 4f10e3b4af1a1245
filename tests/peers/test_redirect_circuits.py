"""circuit-tracer's and auto-circuit's packages, and what EAP-IG and ACDC ask, on both libraries."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.redirected import require_equal, results_of

from lensbridge.compat.transformer_lens import HookedTransformer, HookedTransformerConfig

pytestmark = pytest.mark.peers

SIZES = {
    "n_layers": 2, "d_model": 24, "n_heads": 4, "d_head": 6, "d_mlp": 96, "d_vocab": 61,
    "n_ctx": 32, "eps": 1e-5, "device": "cpu", "model_name": "tiny", "default_prepend_bos": False,
}  # fmt: skip
GPT2 = {**SIZES, "act_fn": "gelu_new", "normalization_type": "LN"}
LLAMA = {
    **SIZES, "act_fn": "silu", "normalization_type": "RMS", "n_key_value_heads": 2,
    "positional_embedding_type": "rotary", "rotary_dim": 6, "rotary_adjacent_pairs": False,
    "gated_mlp": True, "final_rms": True,
}  # fmt: skip
QWEN3 = {**LLAMA, "use_qk_norm": True}
GEMMA2 = {
    **LLAMA, "act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True,
    "attn_scores_soft_cap": 3.0, "output_logits_soft_cap": 4.0,
}  # fmt: skip
SHAPES = {"gpt2": GPT2, "qwen2": LLAMA, "qwen3": QWEN3, "gemma2": GEMMA2}
"""Llama's is Qwen 2's without biases; here all biases differ from zero."""


def weights(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config and a state of its names; only b_in of a gated MLP is zero, which none has."""
    generator = torch.Generator().manual_seed(0)
    state = HookedTransformer(HookedTransformerConfig(**cfg)).state_dict()
    values = {
        name: torch.randn(one.shape, generator=generator) * 0.3 + float(name.endswith(".w"))
        if not (name.endswith(".b_in") and cfg.get("gated_mlp"))
        else torch.zeros_like(one)
        for name, one in state.items()
    }
    return {"cfg": cfg, **values}


@pytest.mark.skipif(find_spec("circuit_tracer") is None, reason="circuit-tracer is not installed")
@pytest.mark.parametrize("shape", SHAPES)
def test_circuit_tracer_gives_the_same_graphs_and_interventions(shape: str, tmp_path: Path) -> None:
    ours, theirs = results_of("circuit_tracer_graphs", weights(SHAPES[shape]), tmp_path)
    require_equal(ours, theirs, 2e-5)
    assert ours["mlp, whole: edges"].abs().max() > 0.1
    assert not torch.allclose(ours["mlp, free: logits"], ours["mlp, logits"], atol=1e-2)
    assert torch.equal(ours["mlp, after"], ours["mlp, logits"])


@pytest.mark.skipif(find_spec("auto_circuit") is None, reason="auto-circuit is not installed")
@pytest.mark.parametrize("shape", ["gpt2", "qwen2"])
def test_auto_circuit_gives_the_same_scores_and_circuits(shape: str, tmp_path: Path) -> None:
    ours, theirs = results_of("auto_circuit_prunes", weights(SHAPES[shape]), tmp_path)
    require_equal(ours, theirs)
    gradient = [one for name, one in ours.items() if name.startswith("gradient: ")]
    assert max(one.abs().max() for one in gradient) > 0.1
    for name, one in ours.items():
        if name.startswith("again: "):
            assert torch.equal(one, ours[name.replace("again", "gradient")])


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_have_the_same_scores_and_effects(shape: str, tmp_path: Path) -> None:
    ours, theirs = results_of("edges", weights(SHAPES[shape]), tmp_path)
    require_equal(ours, theirs, 2e-5)
    of_keys, of_queries = (ours[f"None, blocks.1.hook_{letter}_input"] for letter in "kq")
    assert of_keys.shape == of_queries.shape == (2, 6, 4, 24)
    assert torch.equal(ours["after"], ours["logits"])
    assert torch.equal(ours["copy"], ours["logits"])
    for kind in ("patching", "zero", "mean"):
        assert (ours[f"circuit, {kind}"] - ours["logits"]).abs().max() > 0.1
