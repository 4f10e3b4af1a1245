"""Selections of positions, neurons or examples, and how they are taken from a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError

PosSlice: TypeAlias = (
    int
    | Literal["last"]
    | slice
    | tuple[int | None, ...]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Tensor
    | None
)
"""An index, a slice, its `(start, stop, step)` as a tuple, or a list of indices; None is all. Of
positions, "last" is the same as -1, a list may have one list for each example, and a mask of bools
has an entry for each column of the batch. `positions.py` says what they count where a batch is
padded."""


@dataclass(frozen=True, eq=False)
class RowColumns:
    """Columns of each row of a padded batch.

    Args:
        columns: `[rows, n]`.
        single: whether one position was asked for, so that results may drop its axis.
    """

    columns: Tensor
    single: bool = False

    def of(self, value: Tensor, axis: int, batch: int | None) -> Tensor:
        """The columns of a value; the axis stays.

        Args:
            value: a tensor of any shape.
            axis: the axis of columns.
            batch: the axis of rows. With size 1, the rows share the value; None: it has none.

        Raises:
            InputError: the value has no axis of rows, and the rows have other columns.
        """
        columns = self.columns.to(value.device)
        self._check(value.shape[axis])
        if batch is None:
            if not bool((columns == columns[0]).all()):
                raise InputError(
                    "All rows share one value there, and their padding differs, so the positions "
                    "are other columns in each row. Pass count='columns'."
                )
            return value.index_select(axis, columns[0])
        front = value.movedim((batch, axis), (0, 1))
        if len(columns) == 1:
            columns = columns.expand(len(front), -1)
        if len(front) == 1:
            front = front.expand(len(columns), *front.shape[1:])
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        return front[rows, columns].movedim((0, 1), (batch, axis))

    def _check(self, size: int) -> None:
        wrong = self.columns[(self.columns >= size) | (self.columns < -size)].tolist()
        if wrong:
            raise InputError(f"position {wrong[0]}: there are {size} columns, 0 to {size - 1}.")

    def rows(self, chosen: Any) -> "RowColumns":
        """The same for some rows."""
        return RowColumns(self.columns[chosen], self.single)


def as_index(chosen: PosSlice) -> Any:
    """The selection as an index for torch.

    Example:
        >>> as_index((1, 3)), as_index(None), as_index([0, 2]), as_index(-1)
        (slice(1, 3, None), slice(None, None, None), [0, 2], -1)
    """
    if isinstance(chosen, str):
        chosen = -1
    if chosen is None:
        return slice(None)
    if isinstance(chosen, tuple):
        return slice(*chosen)
    return list(chosen) if isinstance(chosen, Sequence) else chosen


def taken(value: Tensor, chosen: PosSlice | RowColumns, axis: int) -> Tensor:
    """The chosen part of one axis; an int removes the axis.

    Args:
        value: a tensor of any shape.
        chosen: which entries. Where they differ from row to row, the axis of rows comes before
            this one.
        axis: counted from the end, so negative.
    """
    if isinstance(chosen, RowColumns):
        batch = axis - 1 if value.ndim >= 1 - axis else None
        found = chosen.of(value, axis, batch)
        return found.select(axis, 0) if chosen.single else found
    if chosen is None:
        return value
    index = (..., as_index(chosen), *[slice(None)] * (-axis - 1))
    return value[index]
