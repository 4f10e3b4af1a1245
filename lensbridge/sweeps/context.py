"""SweepContext: what all flights of a sweep share, and where the rows of a cell begin in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edit import Edit
from lensbridge.sweeps.prefix import Prefix


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
        cls, base: BaseRun, prefix: Prefix | None, reads: Sequence[int], cells: Sequence[Edit]
    ) -> "SweepContext":
        """The field of some cells. A pattern may be told to look ahead, so it needs every key."""
        whole = prefix is None or any("k" in base.axes(cell.point) for cell in cells)
        return cls(base, prefix, reads, base.logits.shape[1] if whole else reads[-1] + 1)

    def is_behind(self, cell: Edit) -> bool:
        """Whether a cell begins behind everything that is read, so that it cannot matter."""
        return self.prefix is not None and self.start(cell) > self.reads[-1]

    def start(self, cell: Edit) -> int:
        """Where the rows of a cell may begin."""
        return 0 if self.prefix is None else cell.first_position(self.base.axes(cell.point))
