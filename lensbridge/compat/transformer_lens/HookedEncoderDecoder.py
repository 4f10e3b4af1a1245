# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedEncoderDecoder`."""

from lensbridge.compat.transformer_lens.encoders import HookedEncoderDecoder

__all__ = ["HookedEncoderDecoder"]
