"""FactoredMatrix: a product kept as its factors."""

from lensbridge.factored.matrix import FactoredMatrix

__all__ = ["FactoredMatrix"]
