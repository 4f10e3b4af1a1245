# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedTransformerConfig`."""

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig

__all__ = ["HookedTransformerConfig"]
