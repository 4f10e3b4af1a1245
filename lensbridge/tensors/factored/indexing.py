"""An index into a matrix with leading axes, split into the items for each axis."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index as as_int
from typing import Any

import torch
from torch import Tensor

ALL = slice(None)


@dataclass(frozen=True)
class MatrixIndex:
    """An index into `[..., row, column]`.

    Args:
        leading: the items for the leading axes, new axes included, without trailing `:`.
        row: the item for the rows; an int is a slice of one, so that the axis stays.
        column: the item for the columns; an int is a slice of one.
        between: the number of new axes between rows and columns.
        after: the number of new axes after the columns.
    """

    leading: tuple[Any, ...]
    row: Any
    column: Any
    between: int
    after: int

    @classmethod
    def of(cls, index: Any, shape: Sequence[int]) -> "MatrixIndex":
        """Split an index.

        Raises:
            IndexError: it does not fit the shape.

        Example:
            >>> MatrixIndex.of((5, ..., 0), (12, 4, 64, 64)).column
            slice(0, 1, None)
        """
        items = index if isinstance(index, tuple) else (index,)
        given = _spread([_plain(item) for item in items], len(shape))
        leading: list[Any] = []
        matrix: list[Any] = []
        axis, new_axes, first = 0, [0, 0], len(shape) - 2
        for item in given:
            if item is None and axis > first:
                new_axes[axis - first - 1] += 1
            elif axis < first or item is None:
                leading.append(item)
            else:
                matrix.append(_kept(item, shape[axis]))
            axis += _width(item)
            if axis > first and axis - _width(item) < first:
                raise IndexError(
                    "A mask covers leading axes and rows at once; use it to index .AB."
                )
        return cls(_stripped(leading), matrix[0], matrix[1], new_axes[0], new_axes[1])


def _plain(item: Any) -> Any:
    """Slices, None and Ellipsis unchanged, whole numbers as ints, everything else as tensors."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, bool):
        raise IndexError("True and False cannot be an index; use 0, 1, a slice or a mask.")
    if isinstance(item, Tensor) and (item.ndim or item.dtype == torch.bool):
        return item
    try:
        return as_int(item)
    except TypeError:
        return torch.as_tensor(item)


def _width(item: Any) -> int:
    """How many axes an item indexes."""
    if item is None:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _spread(items: list[Any], ndim: int) -> Iterator[Any]:
    """The items, with `:` for every axis that an ellipsis, or the end, leaves out."""
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("An index can have only one ellipsis.")
    taken = sum(_width(item) for item in items if item is not Ellipsis)
    if taken > ndim:
        raise IndexError(f"The index has {taken} axes, and the factored matrix has {ndim}.")
    rest = [ALL] * (ndim - taken)
    at = ellipses[0] if ellipses else len(items)
    return iter([*items[:at], *rest, *items[at + 1 :]])


def _kept(item: Any, size: int) -> Any:
    """An item for rows or columns, changed so that the axis stays."""
    if isinstance(item, int):
        if not -size <= item < size:
            raise IndexError(f"Index {item} is out of range for an axis of {size}.")
        return slice(item % size, item % size + 1)
    if isinstance(item, Tensor) and item.ndim != 1:
        raise IndexError(
            f"Rows and columns take an int, a slice, or one axis of indices; got {item.ndim} axes. "
            "Use it to index .AB."
        )
    return item


def _stripped(leading: list[Any]) -> tuple[Any, ...]:
    """The items without the `:` at the end, which change nothing."""
    while leading and isinstance(leading[-1], slice) and leading[-1] == ALL:
        leading.pop()
    return tuple(leading)
