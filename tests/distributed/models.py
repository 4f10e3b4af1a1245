"""Tiny models for tests on several ranks, and the inputs of each rank."""

from typing import Any

import torch
import torch.distributed as distributed
from tiny_models import Shape, build
from torch import Tensor, nn


def whole(family: str = "gpt2", **sizes: Any) -> nn.Module:
    """The same model on every rank."""
    return build(Shape(family, **sizes))


def ids(rank: int | None = None) -> Tensor:
    """Tokens of a rank, others on each."""
    rank = distributed.get_rank() if rank is None else rank
    return torch.randint(0, 60, (2, 5), generator=torch.Generator().manual_seed(rank))


def double(value: Tensor, hook: Any) -> Tensor:
    """A hook."""
    return value * 2
