"""SweepContext: what all flights of a sweep share, and where the rows of a cell begin in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.cell import Cell, write
from lensbridge.sweeps.prefix import Prefix
from lensbridge.sweeps.setters import INDEXED_AXES


@dataclass(frozen=True)
class SweepContext:
    """What every flight of a sweep shares.

    Args:
        base: the unpatched run; it kept the stream at each layer where a cell joins.
        prefix: keys and values of that run, or None where rows hold every position.
        reads: the positions of the logits that the metric reads.
        end: behind the last position that matters.
    """

    base: BaseRun
    prefix: Prefix | None
    reads: Sequence[int]
    end: int

    @cached_property
    def logits(self) -> Tensor:
        """What metrics are given: NaN where they do not read."""
        return torch.full_like(self.base.logits, torch.nan)

    def show(self, part: Tensor, places: Sequence[int]) -> Tensor:
        """Logits of one cell where they belong. The next cell's are written to the same tensor."""
        for read in self.reads:
            if read < places[0]:
                self.logits[:, read] = self.base.logits[:, read]
        for i, read in enumerate(places):
            self.logits[:, read] = part[:, i]
        return self.logits

    @classmethod
    def of(
        cls, base: BaseRun, prefix: Prefix | None, reads: Sequence[int], cells: Sequence[Cell]
    ) -> "SweepContext":
        """The field of some cells. A pattern may be told to look ahead, so it needs every key."""
        whole = prefix is None or any("k" in base.axes(cell.point) for cell in cells)
        return cls(base, prefix, reads, base.logits.shape[1] if whole else reads[-1] + 1)

    def is_behind(self, cell: Cell) -> bool:
        """Whether a cell begins behind everything that is read, so that it cannot matter."""
        return self.prefix is not None and self.start(cell) > self.reads[-1]

    def start(self, cell: Cell) -> int:
        """Where the rows of a cell may begin."""
        return 0 if self.prefix is None else position_of(cell, self.base.axes(cell.point))


def position_of(cell: Cell, axes: Sequence[str]) -> int:
    """The first position that a cell writes to; 0 where that cannot be told.

    Example:
        >>> position_of(Cell("z", (slice(None), 5, 2), 0.0), ["b", "p", "h", "d"])
        5
    """
    if cell.first is not None:
        return cell.first
    axis = next((i for i, letter in enumerate(axes) if letter in "pq"), None)
    if axis is None:
        return 0
    if cell.setter is write:
        index = cell.index if isinstance(cell.index, tuple) else (cell.index,)
        return _first(index[axis]) if axis < len(index) and _is_plain(index) else 0
    placed = INDEXED_AXES.get(cell.setter, ())
    return _first(cell.index[1 + placed.index(axis)]) if axis in placed else 0


def _is_plain(index: tuple[Any, ...]) -> bool:
    """Whether each entry of an index is about the axis at its own place."""
    return all(isinstance(one, int | slice | list) for one in index)


def _first(one: Any) -> int:
    if isinstance(one, slice):
        one = one.start if one.step is None or one.step > 0 else 0
    found = min(one) if isinstance(one, list) and one else one
    return found if isinstance(found, int) and found > 0 else 0
