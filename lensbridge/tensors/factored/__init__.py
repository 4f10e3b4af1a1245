"""FactoredMatrix: a product kept as its factors."""

from lensbridge.tensors.factored.matrix import FactoredMatrix

__all__ = ["FactoredMatrix"]
