"""How large an error of a sum counts as rounding."""

import torch
from torch import Tensor

ROUNDINGS = 32
"""The error of a sum that counts as rounding, in units of rounding at the size of its terms."""


def is_rounding(rest: Tensor, whole: Tensor) -> bool:
    """Whether the rest of a sum is no more than the rounding of the whole."""
    return bool(rest.abs().max() <= ROUNDINGS * unit(whole.dtype) * whole.abs().max())


def unit(dtype: torch.dtype) -> float:
    """The unit of rounding; at least that of float32, in which many norms compute."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
