"""SweepContext: what all batches of a sweep share, and at which position a cell's row begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edits import Edits, points_of
from lensbridge.sweeps.prefix import Prefix


@dataclass(frozen=True)
class SweepContext:
    """What every batch of a sweep shares.

    Args:
        base: the unpatched run; it kept the stream before each layer where a cell starts.
        prefix: keys and values of that run, or None where rows hold every position.
        reads: the positions of the logits that the metric reads.
        end: the position after the last one that matters.
    """

    base: BaseRun
    prefix: Prefix | None
    reads: Sequence[int]
    end: int

    @cached_property
    def logits(self) -> Tensor:
        """What metrics are given: NaN at the positions that they do not read."""
        return torch.full_like(self.base.logits, torch.nan)

    def show(self, part: Tensor, places: Sequence[int]) -> Tensor:
        """Logits of one cell at their positions. Those of the next overwrite the same tensor."""
        for read in self.reads:
            if read < places[0]:
                self.logits[:, read] = self.base.logits[:, read]
        for i, read in enumerate(places):
            self.logits[:, read] = part[:, i]
        return self.logits

    @classmethod
    def of(
        cls, base: BaseRun, prefix: Prefix | None, reads: Sequence[int], cells: Sequence[Edits]
    ) -> "SweepContext":
        """The context of some cells. An edited pattern may look at later positions, so it needs
        the keys of all of them. So does an edit that mixes positions which an earlier one changed.
        Interventions of a context may count positions from the end.
        """
        whole = prefix is None or any("k" in base.axes(point) for point in points_of(cells))
        whole = whole or not base.model.engine.is_idle or any(cell.mixes_late for cell in cells)
        return cls(base, prefix, reads, base.logits.shape[1] if whole else reads[-1] + 1)

    def is_too_late(self, cell: Edits) -> bool:
        """Whether a cell begins after all positions that are read, so that it cannot matter."""
        return self.prefix is not None and self.start(cell) > self.reads[-1]

    def start(self, cell: Edits) -> int:
        """The position at which the row of a cell may begin."""
        if self.prefix is None:
            return 0
        axes = self.base.axes
        return min((edit.first_position(axes(edit.point)) for edit in cell), default=0)
