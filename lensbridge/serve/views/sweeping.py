"""Sweeps that are told to the page as they are run, a few cells at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.serve.subject import Subject
from lensbridge.serve.worker import Job

_LEAST, _MOST = 4, 256
"""Cells of a step. Each step also runs the input unpatched, so that very small ones cost more."""

_SECONDS = 0.5
"""How long a step should take."""


@dataclass
class _Pace:
    """How many cells the next step has, and whether they are run one by one.

    A batch costs less for each cell only if it is large enough, which depends on the model, the
    prompt and the machine. So the first step is run one by one and the second as a batch, and the
    following ones as what was faster.
    """

    seconds: dict[bool, float] = field(default_factory=dict)

    def next(self) -> tuple[int, bool]:
        """The number of cells, and whether they are run one by one."""
        if True not in self.seconds:
            return _LEAST, True
        if False not in self.seconds:
            return 16, False
        exact = self.seconds[True] < self.seconds[False]
        return max(_LEAST, min(_MOST, int(_SECONDS / self.seconds[exact]))), exact

    def note(self, exact: bool, cells: int, seconds: float) -> None:
        """What a step took."""
        self.seconds[exact] = max(seconds / cells, 1e-6)


def swept(
    subject: Subject,
    given: Any,
    cells: Sequence[Any],
    metric: Callable[[Tensor], Tensor],
    job: Job,
) -> Iterator[tuple[int, list[float]]]:
    """The metric of each cell, in steps: the number of the step's first cell, and the values.

    Between steps other questions are answered. A cancelled job ends between two cells.
    """

    def checked(logits: Tensor) -> Tensor:
        job.check()
        return metric(logits)

    start, pace = 0, _Pace()
    while start < len(cells):
        count, exact = pace.next()
        step, began = cells[start : start + count], monotonic()
        result = subject.model.sweep(given, step, checked, exact=exact or None)
        pace.note(exact, len(step), monotonic() - began)
        yield start, result.values.tolist()
        start += len(step)


def check_cells(subject: Subject, count: int) -> None:
    """Refuse a heatmap of too many cells.

    Raises:
        InputError: with both numbers.
    """
    most = subject.limits.max_cells
    if count > most:
        raise InputError(
            f"This heatmap has {count} cells, and the page runs {most} at most. Shorten the "
            "prompt, or start the page with a larger max_cells."
        )
    if not count:
        raise InputError("No layer of this model has this activation.")
