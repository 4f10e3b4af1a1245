"""Where TransformerLens has `TransformerBridge`."""

from lensbridge.compat.transformer_lens.bridge import TransformerBridge, build_bridge_from_module

__all__ = ["TransformerBridge", "build_bridge_from_module"]
