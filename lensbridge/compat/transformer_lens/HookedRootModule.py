# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedRootModule`."""

from lensbridge.compat.transformer_lens.root_module import HookedRootModule

__all__ = ["HookedRootModule"]
