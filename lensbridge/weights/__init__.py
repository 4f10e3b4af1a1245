"""Weights under the field's names: `W_*`, `b_*`, `model.blocks[i]`; circuits made from them."""

from lensbridge.weights.description import DescribedWeight, DescribedWeights

__all__ = ["DescribedWeight", "DescribedWeights"]
