"""Work that takes a while: shown on a terminal after two seconds, silent everywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from threading import Timer

from lensbridge.cli.output import console

PATIENCE = 2.0
"""Seconds before progress is shown."""

Advance = Callable[[float], None]
"""Takes how far the work is, in its own units."""


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
            yield lambda done: None
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
            yield lambda done: progress.update(task, completed=done)
        finally:
            timer.cancel()
            timer.join()
            progress.stop()
