"""Gradients of weights under their TransformerLens names, and freezing."""

from typing import Any

import pytest
import torch
from tiny_models import Shape, build

from lensbridge.compat.transformer_lens import HookedTransformer
from lensbridge.errors import WeightError

SMALL = {
    "n_layers": 1, "d_model": 24, "n_ctx": 5, "d_head": 6, "d_vocab": 12, "d_mlp": 40,
    "device": "cpu", "act_fn": "relu", "normalization_type": None, "seed": 0,
}  # fmt: skip
GRADS = ("attn.W_Q", "attn.W_V", "attn.b_K", "attn.W_O", "mlp.W_in", "mlp.b_out")


@pytest.mark.parametrize(
    ("family", "step", "atol"),
    [("gpt2", 1e-5, 1e-8), ("llama", 1e-3, 3e-4), ("neox", 1e-5, 1e-8)],  # RMSNorm is in float32
)
def test_gradients_are_derivatives(family: str, step: float, atol: float) -> None:
    """Central differences in float64, one entry of each weight."""
    hf_model = build(Shape(family)).double()
    model = HookedTransformer.from_pretrained_no_processing("x", hf_model=hf_model, dtype=None)
    ids = torch.randint(3, 60, (2, 6))
    model(ids, return_type="loss").backward()
    names = [f"blocks.1.{one}" for one in GRADS if family != "llama" or ".b_" not in one]
    for name in ("embed.W_E", "pos_embed.W_pos", *names):
        if name not in model.state_dict():
            continue
        part, _, last = name.rpartition(".")
        grad = dict(model.named_parameters())[name].grad
        place: Any = tuple(size // 2 for size in grad.shape)
        weight = model.state_dict()[name]
        losses = []
        for change in (step, -2 * step):
            weight[place] += change
            losses.append(model(ids, return_type="loss").item())
        weight[place] += step
        wanted = (losses[0] - losses[1]) / (2 * step)
        assert grad[place].item() == pytest.approx(wanted, abs=atol), name
        assert torch.equal(model.lookup(part).__getattr__(last).grad, grad)
    assert torch.equal(model.W_E.grad, hf_model.get_input_embeddings().weight.grad)
    model.zero_grad()
    assert model.W_E.grad is None


def test_biases_are_frozen() -> None:
    model = HookedTransformer(SMALL)
    for name, parameter in model.named_parameters():
        if "b_" in name:
            parameter.requires_grad = False
    left = {name for name, one in model.hf_model.named_parameters() if one.requires_grad}
    assert not any(name.endswith("bias") for name in left)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {
        *("embed.W_E", "pos_embed.W_pos", "unembed.W_U", "blocks.0.mlp.W_in", "blocks.0.mlp.W_out"),
        *(f"blocks.0.attn.W_{one}" for one in "QKVO"),
    }
    before = model.state_dict()
    before = {name: one.clone() for name, one in before.items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1.0)
    model(torch.arange(5)[None], return_type="loss").backward()
    optimizer.step()
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]) == ("b_" in name), name


def test_a_part_of_a_parameter_is_not_frozen_alone() -> None:
    model = HookedTransformer({**SMALL, "normalization_type": "LN"})
    fused = dict(model.named_parameters())["blocks.0.attn.b_Q"]
    with pytest.raises(WeightError, match="frozen in part"):
        fused.requires_grad_(False)
    assert model.hf_model.transformer.h[0].attn.c_attn.bias.requires_grad
