"""Tally: how often values occur, counted in intervals that grow with the largest value."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

SIDE = 512
"""Intervals on each side of zero."""


@dataclass(eq=False, repr=False)
class Tally:
    """Counts of values. Its size does not depend on how many values are added.

    The intervals have one width, a power of two. When a value is beyond the last one, the width is
    doubled and intervals are joined in pairs, so that counts stay exact.

    Attributes:
        count: how many values.
        active: how many of them are above 0.
        total: their sum.
        low: the smallest; infinite if there is none.
        high: the largest.
        width: of an interval; 0 if no value was added.
        counts: `[2 * SIDE]`; entry `SIDE` begins at 0.
    """

    count: int = 0
    active: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    width: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(2 * SIDE, dtype=torch.long))

    def __repr__(self) -> str:
        return f"Tally({self.count} values, {self.active} above 0)"

    def add(self, values: Tensor) -> None:
        """Count some values. Shapes: `[value]`"""
        values = values.detach().double().cpu()
        if not len(values):
            return
        self.count += len(values)
        self.active += int((values > 0).sum())
        self.total += float(values.sum())
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self._widen()
        places = (values / self.width).floor().long() + SIDE
        self.counts += torch.bincount(places, minlength=2 * SIDE)

    def _widen(self) -> None:
        """Make the intervals wide enough for the smallest and the largest value."""
        largest = max(abs(self.low), abs(self.high), 2.0**-100)
        needed = 2.0 ** (math.floor(math.log2(largest)) + 1) / SIDE
        while 0 < self.width < needed:
            half = self.counts.view(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[SIDE // 2 : SIDE // 2 + SIDE] = half
            self.width *= 2
        self.width = self.width or needed

    @property
    def density(self) -> float:
        """The share of values above 0; NaN if there is none."""
        return self.active / self.count if self.count else math.nan

    @property
    def mean(self) -> float:
        """Their mean; NaN if there is none."""
        return self.total / self.count if self.count else math.nan

    def histogram(self, positive: bool = False, most: int = 48) -> tuple[list[int], list[float]]:
        """Counts, and the edges of their intervals, one more.

        Args:
            positive: only intervals from 0 up; values of 0 are left out.
            most: how many intervals at most.
        """
        counts, join = self.counts.clone(), 1
        if positive:
            counts[SIDE] -= self.count - self.active - int(counts[:SIDE].sum())
            counts[:SIDE] = 0
        there = counts.nonzero().flatten().tolist()
        if not there:
            return [], [0.0]
        while there[-1] // join - there[0] // join + 1 > most:
            join *= 2
        joined = counts.view(-1, join).sum(1)
        first, last = there[0] // join, there[-1] // join
        edges = [(i * join - SIDE) * self.width for i in range(first, last + 2)]
        return joined[first : last + 1].tolist(), edges
