# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedEncoder`."""

from lensbridge.compat.transformer_lens.encoders import HookedEncoder

__all__ = ["HookedEncoder"]
