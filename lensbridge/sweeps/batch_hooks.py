"""BatchHooks: what the cells of a batch change in some layers, as hooks on their rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.hooks.callbacks import Hook
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edit import Edit


@dataclass(frozen=True)
class BatchHooks:
    """Edits of some layers by the cells of a batch.

    Args:
        edits: each with the number of its row in the batch; those of a row in their order.
        base: the unpatched run.
        starts: the first position of each row; what a pass holds before it is no row of the cell.
    """

    edits: Sequence[tuple[int, Edit]]
    base: BaseRun
    starts: Sequence[int]

    def pairs(self, start: int, end: int) -> list[tuple[Any, Any]]:
        """One hook for each point; the rows hold the positions from `start` to `end`."""
        by_point: dict[Any, list[tuple[int, Edit]]] = {}
        for i, edit in self.edits:
            by_point.setdefault(edit.point, []).append((i, edit))
        return [(point, self._hook(edits, start, end)) for point, edits in by_point.items()]

    def _hook(
        self, edits: Sequence[tuple[int, Edit]], start: int, end: int
    ) -> Callable[[Tensor, Hook], None]:
        batch = self.base.batch

        def patch(activation: Tensor, hook: Hook) -> None:
            for i, edit in edits:
                rows = activation[i * batch : (i + 1) * batch]
                edited = self._edited(edit, rows, start, end, max(start, self.starts[i]))
                if edited is not rows:
                    rows.copy_(edited)

        return patch

    def _edited(self, edit: Edit, rows: Tensor, start: int, end: int, own: int) -> Tensor:
        """A cell's rows after an edit, whose index counts from the first position of the input.

        Before its first own position a row is the unpatched run.
        """
        whole, axes = self.base.shape(edit.point), self.base.axes(edit.point)
        mixes = own > start and edit.mixes_positions
        if tuple(rows.shape) == whole and not mixes:
            return edit.apply(rows)
        first = own if mixes else start
        held = [
            letter in "pq" and length == end - start
            for letter, length in zip(axes, rows.shape, strict=True)
        ]
        pairs = list(zip(held, rows.shape, strict=True))
        place = tuple(slice(first, end) if here else slice(length) for here, length in pairs)
        local = tuple(slice(first - start, None) if here else slice(None) for here, _ in pairs)
        padded = self.base.cache[edit.point].clone()  # elsewhere nothing that matters differs
        padded[place] = rows[local]
        changed = edit.apply(padded)[place]
        if first == start:
            return changed
        rows[local] = changed
        return rows
