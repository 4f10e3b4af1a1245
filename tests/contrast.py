"""Two inputs that differ in two places, and what is measured of them."""

from functools import partial

import torch
from described import of_class
from torch import Tensor

tiny = partial(of_class, dtype=torch.float64)

CLEAN = torch.tensor([[9, 23, 41, 17, 60, 33, 12], [14, 52, 31, 7, 25, 48, 6]])
CORRUPT = torch.tensor([[9, 5, 41, 30, 60, 33, 12], [14, 7, 31, 30, 25, 48, 6]])


def metric(logits: Tensor) -> Tensor:
    """A difference of logits, for each example."""
    return logits[:, -1, 7] - logits[:, -1, 9] / 2


def total(logits: Tensor) -> Tensor:
    """Of all examples."""
    return metric(logits).sum()
