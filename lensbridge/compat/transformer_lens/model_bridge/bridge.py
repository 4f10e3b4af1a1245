"""Where TransformerLens has `TransformerBridge`."""

from lensbridge.compat.transformer_lens.bridge import TransformerBridge

__all__ = ["TransformerBridge"]
