"""Grid: the cells of a sweep by number, and the axes that they lie on."""

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
        axis_names: what the numbers of a row are: ("layer", "pos").
        rows: the numbers of each cell that there is, in the order in which they run.
        axis_values: the numbers along each axis of the result (layers that lack the point are left
            out); None where the cells are a list, so that the result has one axis for all.

    Example:
        >>> grid = Grid.over(("layer", "pos"), ((0, 2), (0, 1, 2)))
        >>> grid.shape, grid.rows[3], grid.place((2, 0))
        ((2, 3), (2, 0), (1, 0))
    """

    axis_names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    axis_values: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def over(cls, names: Sequence[str], values: Sequence[Iterable[int]]) -> "Grid":
        """Every combination, the last axis running fastest."""
        along = tuple(tuple(one) for one in values)
        return cls(tuple(names), tuple(product(*along)), along)

    @classmethod
    def listed(cls, rows: Any) -> "Grid":
        """A list of cells from a data frame whose columns are the axes, or from rows of numbers; of
        a grid, its cells.

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
        """Of the result, without metrics and examples."""
        if self.axis_values is None:
            return (len(self.rows),)
        return tuple(map(len, self.axis_values))

    @cached_property
    def _places(self) -> list[dict[int, int]]:
        return [{value: i for i, value in enumerate(axis)} for axis in self.axis_values or ()]

    def place(self, row: Sequence[int]) -> tuple[int, ...]:
        """Where a row lies in the result.

        Raises:
            LensbridgeError: the cells are a list, whose order is their place.
        """
        if self.axis_values is None:
            raise LensbridgeError("These cells are a list; they lie in the order of `rows`.")
        return tuple(places[value] for places, value in zip(self._places, row, strict=True))

    def frame(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return pandas().DataFrame(list(self.rows), columns=list(self.axis_names))


def _names(rows: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """Names for the numbers of rows that have none, but for the first."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            "index_df is a list of rows that are equally long, the layer first; their lengths are "
            f"{sorted(lengths)}."
        )
    return ("layer", *(f"index_{i}" for i in range(1, lengths.pop())))


def pandas() -> Any:
    """The pandas module, which lensbridge does not need otherwise.

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
