"""Grid: the cells of a sweep by their numbers, and the axes of the result."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from numpy import ndarray
from torch import Tensor

from lensbridge.errors import InputError, LensbridgeError


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep.

    Args:
        axis_names: what the numbers of a row count: ("layer", "pos").
        rows: the numbers of each cell, in the order in which the cells run.
        axis_values: the numbers along each axis of the result (layers that lack the point are left
            out); None if the cells are a list, so that the result has one axis for them.
        names: of the cells of a list, if they have any.

    Example:
        >>> grid = Grid.over(("layer", "pos"), ((0, 2), (0, 1, 2)))
        >>> grid.shape, grid.rows[3], grid.place((2, 0))
        ((2, 3), (2, 0), (1, 0))
    """

    axis_names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    axis_values: tuple[tuple[int, ...], ...] | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def over(cls, names: Sequence[str], values: Sequence[Iterable[int]]) -> "Grid":
        """Every combination, the last axis running fastest."""
        along = tuple(tuple(axis) for axis in values)
        return cls(tuple(names), tuple(product(*along)), along)

    @classmethod
    def listed(cls, rows: Any) -> "Grid":
        """A list of cells, from a data frame with a column for each axis, from rows of numbers, or
        from another grid.

        Raises:
            InputError: rows of different length, or without a layer.
        """
        if isinstance(rows, Grid):
            return cls(rows.axis_names, rows.rows)
        if isinstance(rows, Sequence | Tensor | ndarray):
            numbers = tuple(tuple(map(int, row)) for row in rows)
            return cls(_names(numbers), numbers)
        numbers = tuple(tuple(map(int, row)) for row in rows.itertuples(index=False))
        return cls(tuple(map(str, rows.columns)), numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, without the axes of metrics and examples."""
        if self.axis_values is None:
            return (len(self.rows),)
        return tuple(map(len, self.axis_values))

    @cached_property
    def _places(self) -> list[dict[int, int]]:
        return [{value: i for i, value in enumerate(axis)} for axis in self.axis_values or ()]

    def place(self, row: Sequence[int]) -> tuple[int, ...]:
        """The index of a row in the result.

        Raises:
            LensbridgeError: the cells are a list; the result has the order of `rows`.
        """
        if self.axis_values is None:
            raise LensbridgeError("These cells are a list: the result has the order of `rows`.")
        return tuple(places[value] for places, value in zip(self._places, row, strict=True))

    def frame(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return pandas().DataFrame(list(self.rows), columns=list(self.axis_names))


def _names(rows: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """Names for the numbers of rows: the layer, then numbered ones."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            "index_df is a list of rows of equal length, with the layer first; these have lengths "
            f"{sorted(lengths)}."
        )
    return ("layer", *(f"index_{i}" for i in range(1, lengths.pop())))


def pandas() -> Any:
    """The pandas module, which nothing else in lensbridge needs.

    Raises:
        LensbridgeError: it is not installed.
    """
    try:
        import pandas as module  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise LensbridgeError(
            "A data frame needs pandas, which is not installed: pip install lensbridge[frames]. "
            "The same numbers are in result.values, result.grid.rows and result.axis_names."
        ) from error
    return module


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A data frame with a row for every combination, the last column running fastest.

    Args:
        column_max_ranges: how many values each column takes, from 0.
        column_names: their names.

    Raises:
        InputError: not as many names as ranges.
        LensbridgeError: pandas is not installed.
    """
    if len(column_max_ranges) != len(column_names):
        raise InputError(
            f"{len(column_max_ranges)} ranges and {len(column_names)} names: one for each column."
        )
    return Grid.over(column_names, [range(n) for n in column_max_ranges]).frame()
