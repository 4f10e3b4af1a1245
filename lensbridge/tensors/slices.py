"""Selections of positions, neurons or examples, and how they are taken from a tensor."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

PosSlice: TypeAlias = int | slice | tuple[int | None, ...] | Sequence[int] | Tensor | None
"""An index, a slice, its `(start, stop, step)` as a tuple, or a list of indices; None is all."""


def as_index(chosen: PosSlice) -> Any:
    """The selection as an index for torch.

    Example:
        >>> as_index((1, 3)), as_index(None), as_index([0, 2]), as_index(-1)
        (slice(1, 3, None), slice(None, None, None), [0, 2], -1)
    """
    if chosen is None:
        return slice(None)
    if isinstance(chosen, tuple):
        return slice(*chosen)
    return list(chosen) if isinstance(chosen, Sequence) else chosen


def taken(value: Tensor, chosen: PosSlice, axis: int) -> Tensor:
    """The chosen part of one axis; an int removes the axis.

    Args:
        value: a tensor of any shape.
        chosen: which entries.
        axis: counted from the end, so negative.
    """
    if chosen is None:
        return value
    index = (..., as_index(chosen), *[slice(None)] * (-axis - 1))
    return value[index]
