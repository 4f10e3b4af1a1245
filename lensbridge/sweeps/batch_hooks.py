"""BatchHooks: the cells of a batch that edit one layer, as hooks on their rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.hooks.callbacks import Hook
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edit import Edit


@dataclass(frozen=True)
class BatchHooks:
    """Cells of a batch that edit one layer.

    Args:
        cells: these cells, each with the number of its row in the batch.
        base: the unpatched run.
    """

    cells: Sequence[tuple[int, Edit]]
    base: BaseRun

    def pairs(self, start: int, end: int) -> list[tuple[Any, Any]]:
        """One hook for each point; the rows hold the positions from `start` to `end`."""
        by_point: dict[Any, list[tuple[int, Edit]]] = {}
        for i, cell in self.cells:
            by_point.setdefault(cell.point, []).append((i, cell))
        return [(point, self._hook(cells, start, end)) for point, cells in by_point.items()]

    def _hook(
        self, cells: Sequence[tuple[int, Edit]], start: int, end: int
    ) -> Callable[[Tensor, Hook], None]:
        batch = self.base.batch

        def patch(activation: Tensor, hook: Hook) -> None:
            for i, cell in cells:
                rows = activation[i * batch : (i + 1) * batch]
                edited = self._edited(cell, rows, start, end)
                if edited is not rows:
                    rows.copy_(edited)

        return patch

    def _edited(self, cell: Edit, rows: Tensor, start: int, end: int) -> Tensor:
        """A cell's rows after its edit, whose index counts from the first position of the input."""
        whole = self.base.shape(cell.point)
        if tuple(rows.shape) == whole:
            return cell.apply(rows)
        place = tuple(
            slice(start, end) if letter in "pq" and length == end - start else slice(length)
            for letter, length in zip(self.base.axes(cell.point), rows.shape, strict=True)
        )
        padded = self.base.cache[cell.point].clone()  # at the cell's layer nothing differs yet
        padded[place] = rows
        return cell.apply(padded)[place]
