"""Processed weights beside TransformerLens's: the classic copy's, and its bridge's."""

import copy
from typing import Any

import pytest
import torch
from peers.twins import FAMILIES, theirs, twins
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lensbridge
from lensbridge.model import LensModel

pytestmark = pytest.mark.peers

LAYER_NORMS = [name for name, (_, _, cfg) in FAMILIES.items() if "gated_mlp" not in cfg]
UNROTATED = [name for name, (_, _, cfg) in FAMILIES.items() if "rotary_dim" not in cfg]


def allowed(name: str) -> dict[str, bool]:
    """The steps that leave the function as it is; TransformerLens skips some, and does others."""
    return {
        "fold_ln": True,
        "center_writing_weights": name in LAYER_NORMS,
        "center_unembed": "output_logits_soft_cap" not in FAMILIES[name][2],
        "fold_value_biases": True,
    }


def compared(model: LensModel) -> list[str]:
    """The weights to compare: norms have none any more."""
    return [name for name in model.weight_names if ".ln" not in name and "ln_" not in name]


def as_theirs(model: LensModel, name: str, wanted: Tensor) -> Tensor:
    """Our weight where they store it otherwise."""
    found = model.weight(name)
    if name == "embed.W_E":  # they keep Gemma's multiplier of the embedding in the table
        return found * (24**0.5 if "Gemma" in model.cfg.original_architecture else 1.0)
    return found[-wanted.shape[0] :] if name == "pos_embed.W_pos" else found  # OPT's unused rows


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_and_the_log_probabilities_are_the_classic_ones(name: str) -> None:
    steps = allowed(name)
    hf_model, classic = twins(name, **steps)
    model = lensbridge.load(hf_model)
    ids = torch.randint(5, 90, (2, 7))
    with model.processed(**steps), torch.no_grad():
        held = {weight: theirs(classic, weight) for weight in compared(model)}
        missing = [weight for weight, wanted in held.items() if wanted is None]
        assert not [
            one for one in missing if not torch.equal(model.weight(one), 0 * model.weight(one))
        ]
        for weight, wanted in held.items():
            if wanted is not None:
                found = as_theirs(model, weight, wanted)
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5, msg=weight)
        found = hf_model(ids).logits.log_softmax(-1)
        torch.testing.assert_close(found, classic(ids).log_softmax(-1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", UNROTATED)
def test_refactored_matrices_are_the_classic_ones_up_to_signs(name: str) -> None:
    steps = {**allowed(name), "refactor_factored_attn_matrices": True}
    hf_model, classic = twins(name, torch.float64, **steps)
    model = lensbridge.load(hf_model)
    with model.processed(**steps):
        for layer in range(2):
            at = f"blocks.{layer}.attn."
            for first, second in (("W_Q", "W_K"), ("W_V", "W_O")):
                wanted = [theirs(classic, at + one) for one in (first, second)]
                found = [model.weight(at + one) for one in (first, second)]
                sign = (wanted[0] * found[0]).sum(-2).sign()
                axis = sign.unsqueeze(-2), sign.unsqueeze(-1 if second == "W_O" else -2)
                for ours, sign_of, them in zip(found, axis, wanted, strict=True):
                    torch.testing.assert_close(ours * sign_of, them, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [one for one in FAMILIES if one != "MixtralForCausalLM"])
def test_every_weight_is_that_of_the_bridge_in_its_compatibility_mode(name: str) -> None:
    steps = allowed(name)
    hf_model, _ = twins(name)
    bridge = build_bridge_from_module(copy.deepcopy(hf_model), name, hf_config=hf_model.config)
    bridge.enable_compatibility_mode(disable_warnings=True, **steps)
    model = lensbridge.load(hf_model)
    with model.processed(**steps):
        for stack in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "b_Q", "b_V", "b_O", "b_in"):
            wanted, found = of_bridge(bridge, stack), getattr(model, stack).full()
            wanted = torch.zeros_like(found) if wanted is None else wanted
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5, msg=stack)
        torch.testing.assert_close(model.W_U, bridge.W_U, atol=1e-5, rtol=1e-5)


def of_bridge(bridge: Any, stack: str) -> Tensor | None:
    """The bridge's stack; it raises where there are no biases."""
    try:
        found: Tensor = getattr(bridge, stack)
    except (TypeError, AttributeError):
        assert stack.startswith("b_")
        return None
    return found
