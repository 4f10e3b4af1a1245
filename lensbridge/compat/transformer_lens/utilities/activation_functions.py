"""Where TransformerLens has its activation functions."""

from lensbridge.compat.transformer_lens.activations import (
    ACTIVATION_FN_DICT,
    SUPPORTED_ACTIVATIONS,
    gelu_fast,
    gelu_new,
    solu,
)

__all__ = ["ACTIVATION_FN_DICT", "SUPPORTED_ACTIVATIONS", "gelu_fast", "gelu_new", "solu"]
