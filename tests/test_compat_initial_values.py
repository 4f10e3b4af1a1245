"""How the weights of a model that is made from a config are drawn."""

from typing import Any

import pytest
import torch

from lensbridge.compat.transformer_lens import HookedTransformer, HookedTransformerConfig
from lensbridge.errors import InputError

SIZES: dict[str, Any] = {
    "n_layers": 1, "d_model": 64, "n_heads": 2, "d_head": 24, "d_mlp": 192, "d_vocab": 90,
    "n_ctx": 70, "act_fn": "gelu_new", "device": "cpu",
}  # fmt: skip
READS = {"W_E": 90, "W_pos": 70, "W_Q": 64, "W_O": 24, "W_in": 64, "W_out": 192, "W_U": 64}
RETURNS = {"W_E": 64, "W_pos": 64, "W_Q": 48, "W_O": 128, "W_in": 192, "W_out": 64, "W_U": 90}


def made(**more: Any) -> HookedTransformer:
    return HookedTransformer(HookedTransformerConfig(**{**SIZES, **more}))


def wanted(mode: str, name: str) -> float:
    """Standard deviations written out."""
    if mode == "gpt2":
        return 0.8 / 64**0.5
    if mode == "muP":
        return 1.0 if name in ("W_E", "W_pos", "W_U") else READS[name] ** -0.5
    if "xavier" in mode:
        return (2 / (READS[name] + RETURNS[name])) ** 0.5
    return (2 / READS[name]) ** 0.5


@pytest.mark.parametrize(
    "mode", ["gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"]
)
def test_a_mode_has_its_distribution(mode: str) -> None:
    model = made(init_mode=mode, seed=0)
    for name in READS:
        weight = getattr(model, name)
        spread = weight.std().item()
        assert spread == pytest.approx(wanted(mode, name), rel=0.1), name
        assert abs(weight.mean().item()) < 0.1 * spread
        widest = weight.abs().max().item() / spread
        assert (widest < 1.9) == ("uniform" in mode), name  # the root of 3, or about 4
    for name, one in model.state_dict().items():
        if name.rpartition(".")[2].startswith("b"):
            assert not one.any(), name


def test_initializer_range_is_a_size_or_a_factor() -> None:
    assert made(initializer_range=0.5).W_in.std().item() == pytest.approx(0.5, rel=0.05)
    for mode in ("xavier_normal", "kaiming_uniform"):
        plain, double = (made(init_mode=mode, seed=1, initializer_range=r) for r in (1.0, 2.0))
        torch.testing.assert_close(double.W_Q, 2 * plain.W_Q)
        assert torch.equal(made(init_mode=mode, seed=1).W_Q, plain.W_Q)


def test_weights_come_from_the_generator_of_torch() -> None:
    torch.manual_seed(3)
    first, second = made().W_E, made().W_E
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(made().W_E, first)
    assert torch.equal(made(seed=4).W_U, made(seed=4).W_U)


def test_tied_weights_are_drawn_once() -> None:
    model = made(tie_word_embeddings=True, d_head=32, seed=2)
    assert torch.equal(model.W_E, model.W_U.T)
    assert torch.equal(model.W_E, made(seed=2).W_E)


def test_what_a_model_computes_does_not_change_with_its_config() -> None:
    model = made(seed=0)
    before = model(torch.tensor([[3, 4, 5]]))
    for name, value in {"attn_scale": 2.0, "attn_scores_soft_cap": 3.0, "act_fn": "relu"}.items():
        was = getattr(model.cfg, name)
        with pytest.raises(InputError, match=f"cfg.{name} says what the HuggingFace model"):
            setattr(model.cfg, name, value)
        assert getattr(model.cfg, name) == was
        setattr(model.cfg, name, was)
    model.cfg.n_ctx, model.cfg.model_name, model.cfg.use_attn_result = 12, "mine", True
    assert torch.equal(model(torch.tensor([[3, 4, 5]])), before)
    with pytest.raises(InputError, match="not on n_devices=2"):
        made(n_devices=2)


def test_modes_that_are_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'xavier_normal'"):
        made(init_mode="xavier_normall")
    experts: dict[str, Any] = {
        "num_experts": 3, "experts_per_token": 2, "normalization_type": "RMS", "final_rms": True,
        "positional_embedding_type": "rotary", "gated_mlp": True, "act_fn": "silu", "d_head": 32,
    }  # fmt: skip
    with pytest.raises(InputError, match="not possible with experts"):
        made(init_mode="muP", **experts)
    first, second = (made(seed=7, **experts).hf_model.state_dict() for _ in range(2))
    assert all(torch.equal(one, second[name]) for name, one in first.items())
