"""Schedule: which cells fly together, which flights carry a control, and what flies again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from lensbridge.names import layer_of
from lensbridge.patching.cell import Cell
from lensbridge.patching.field import Field
from lensbridge.patching.flight import Flight
from lensbridge.patching.landing import Arrived, land

ENOUGH_TOKENS = 640
"""Positions in a batch from which on more of them cost in proportion."""

ENOUGH_ROWS = 256
"""The same for the head, which has one position of most rows."""

Group: TypeAlias = list[int]
Logits: TypeAlias = "list[Callable[[], Tensor]] | None"


@dataclass(frozen=True)
class Schedule:
    """How the cells of a sweep fly.

    Args:
        field: what the flights share.
        cells: of the sweep.
        max_tokens: how many positions a batch may have.
        reasons: where it is written why cells cannot fly.
    """

    field: Field
    cells: Sequence[Cell]
    max_tokens: int
    reasons: list[str]

    def run(self, indices: Sequence[int]) -> Iterator[tuple[Group, Logits]]:
        """Fly some cells; gives groups of them with their logits, None where they cannot fly.

        Controls go with the flights that start at other layers than those before, and with the
        first and the last and the one between. Where one of them fails, with all the others too.
        """
        proofs, others = self._proofs(list(self._groups(indices)))
        sure = True
        for group, logits, first_try in self._fly(proofs, control=True):
            sure = sure and first_try
            yield group, logits
        for group, logits, _ in self._fly(others, control=not sure):
            yield group, logits

    def _groups(self, indices: Sequence[int]) -> Iterator[Group]:
        """Cells that fly together: those that begin at one position, or at a few where that is
        enough.

        Rows begin at the first position of their group, so cells further on compute more than they
        need; but a batch of few rows costs nearly as much as one of many.
        """
        field = self.field
        starts = {i: field.start(self.cells[i]) for i in indices}
        group: Group = []
        for i in sorted(indices, key=lambda i: (starts[i], layer_of(self.cells[i].point))):
            if group:
                tokens = (len(group) + 2) * field.base.batch * (field.end - starts[group[0]])
                enough = starts[i] != starts[group[0]] and tokens > ENOUGH_TOKENS
                if enough or tokens > self.max_tokens:
                    yield group
                    group = []
            group.append(i)
        if group:
            yield group

    def _proofs(self, groups: list[Group]) -> tuple[list[Group], list[Group]]:
        """The groups whose flights prove that the others' can be trusted, and those others."""
        chosen = {0, 1, len(groups) // 2, len(groups) - 1}
        seen = set[int | None]()
        for i, group in enumerate(groups):
            layers = {layer_of(self.cells[j].point) for j in group}
            if not layers <= seen:
                chosen.add(i)
            if i in chosen:
                seen |= layers
        proofs = [group for i, group in enumerate(groups) if i in chosen]
        return proofs, [group for i, group in enumerate(groups) if i not in chosen]

    def _fly(self, groups: Sequence[Group], control: bool) -> Iterator[tuple[Group, Logits, bool]]:
        """Fly groups and land some at a time; says of each whether its first flight was right."""
        waiting: list[tuple[Group, Arrived]] = []
        room = min(ENOUGH_ROWS, self.max_tokens)
        for group in groups:
            cells = [self.cells[i] for i in group]
            start = min(map(self.field.start, cells))
            try:
                arrived = Flight(self.field, cells, start, control).run()
            except Exception as error:  # whatever a native model raises when it is started late
                yield group, self._again(group, _raised(error)), False
                continue
            if waiting and not arrived.fits_beside([one for _, one in waiting], room):
                yield from self._land(waiting)
                waiting = []
            waiting.append((group, arrived))
        if waiting:
            yield from self._land(waiting)

    def _land(
        self, waiting: Sequence[tuple[Group, Arrived]]
    ) -> Iterator[tuple[Group, Logits, bool]]:
        why = _DIFFERS
        landed: list[Logits]
        try:
            landed = land([one for _, one in waiting])
        except Exception as error:  # as above
            landed, why = [None] * len(waiting), _raised(error)
        for (group, _), logits in zip(waiting, landed, strict=True):
            first_try = logits is not None
            yield group, logits if first_try else self._again(group, why), first_try

    def _again(self, group: Group, why: str) -> Logits:
        """Logits of cells whose flight failed, from one that reuses no prefix."""
        cells = [self.cells[i] for i in group]
        if self.field.prefix is not None:
            whole = Field.of(self.field.base, None, self.field.reads, cells)
            try:
                (logits,) = land([Flight(whole, cells, 0).run()])
            except Exception as error:  # as above
                logits, why = None, _raised(error)
            if logits is not None:
                return logits
        layer = min(layer_of(cell.point) or 0 for cell in cells)
        self.reasons.append(f"started at layer {layer} the model {why}")
        return None


_DIFFERS = "gives other logits"


def _raised(error: Exception) -> str:
    return f"raised {type(error).__name__}: {error}"
