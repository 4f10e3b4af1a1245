# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedTransformer`."""

from lensbridge.compat.transformer_lens.transformer import HookedTransformer

__all__ = ["HookedTransformer"]
