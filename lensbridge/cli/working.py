"""Work that takes a while: shown on a terminal after two seconds, silent everywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from threading import Timer
from typing import Protocol

from lensbridge.cli.output import console

PATIENCE = 2.0
"""Seconds before progress is shown."""


class Advance(Protocol):
    """Takes how far the work is, in its own units, and what is shown beside it."""

    def __call__(self, done: float, what: str | None = None) -> None:
        """Show it."""


@contextmanager
def working(what: str, total: float | None = None) -> Iterator[Advance]:
    """Show that something is done: its time, or with a total how far it is and what is left.

    What libraries print meanwhile goes to standard error, so that standard output has results only.

    Args:
        what: what is done, as shown.
        total: how much there is to do; None if that is not known.
    """
    with redirect_stdout(sys.stderr):
        out = console(error=True)
        if not out.is_terminal:
            yield lambda done, what=None: None
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Remaining

        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        bars = [] if total is None else [BarColumn(), Remaining()]
        progress = Progress(*columns, *bars, Elapsed(), console=out, transient=True)
        task = progress.add_task(what, total=total)
        timer = Timer(PATIENCE, progress.start)
        timer.daemon = True
        timer.start()
        try:
            yield lambda done, what=None: progress.update(task, completed=done, description=what)
        finally:
            timer.cancel()
            timer.join()
            progress.stop()
