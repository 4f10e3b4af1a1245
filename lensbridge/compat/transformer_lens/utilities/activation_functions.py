"""Where TransformerLens has its activation functions."""

from lensbridge.compat.transformer_lens.activations import (
    ACTIVATION_FN_DICT,
    SUPPORTED_ACTIVATIONS,
    XIELU,
    gelu_fast,
    gelu_new,
    solu,
    xielu,
)

__all__ = [
    "ACTIVATION_FN_DICT",
    "SUPPORTED_ACTIVATIONS",
    "XIELU",
    "gelu_fast",
    "gelu_new",
    "solu",
    "xielu",
]
