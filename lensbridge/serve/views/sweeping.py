"""Sweeps that are told to the page as they are run, a few cells at a time."""

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.serve.subject import Subject
from lensbridge.serve.worker import Job

_FIRST, _MOST = 4, 256
"""Cells of the first step, and of any step."""

_SHORT, _LONG = 0.3, 1.0
"""Steps that take less or more seconds than these are followed by larger or smaller ones."""


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

    start, size = 0, _FIRST
    while start < len(cells):
        began = monotonic()
        step = cells[start : start + size]
        yield start, subject.model.sweep(given, step, checked).values.tolist()
        start += len(step)
        seconds = monotonic() - began
        size = min(2 * size, _MOST) if seconds < _SHORT else size
        size = max(1, size // 2) if seconds > _LONG else size


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
