# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `ActivationCache`."""

from lensbridge.compat.transformer_lens.activation_cache import ActivationCache

__all__ = ["ActivationCache"]
