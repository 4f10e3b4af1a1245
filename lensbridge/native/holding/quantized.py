"""Weights that a quantization library stores as codes, and its own way back to floats."""

from torch import Tensor, nn

from lensbridge.native.holding.kinds import Held


def found(module: nn.Module, name: str) -> Held | None:
    """How a weight is held if a known library quantizes it, otherwise None."""
    return None


def read(module: nn.Module, name: str) -> Tensor | None:
    """The float value by the library's own dequantizer; None where it has none."""
    return None
