# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `FactoredMatrix`."""

from lensbridge.tensors.factored import FactoredMatrix

__all__ = ["FactoredMatrix"]
