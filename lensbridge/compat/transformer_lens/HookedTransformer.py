# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedTransformer`."""

from typing import NamedTuple, TypeAlias

from torch import Tensor

from lensbridge.compat.transformer_lens.transformer import HookedTransformer

SingleLoss: TypeAlias = Tensor
LossPerToken: TypeAlias = Tensor
Loss: TypeAlias = Tensor


class Output(NamedTuple):
    """What `return_type="both"` returns."""

    logits: Tensor
    loss: Loss


__all__ = ["HookedTransformer", "Loss", "LossPerToken", "Output", "SingleLoss"]
