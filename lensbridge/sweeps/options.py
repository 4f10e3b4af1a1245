"""SweepOptions: how a user wants the cells of a sweep to be run."""

from dataclasses import dataclass

MAX_BATCH_TOKENS = 4096
"""Positions in a batch by default, off GPUs; the streams of all of them are held at once."""


@dataclass(frozen=True)
class SweepOptions:
    """How to run cells.

    Args:
        exact: True runs one forward pass for each cell; False makes batches and refuses cells for
            which that cannot be done; None makes batches where it can be done.
        max_batch_tokens: how many positions a batch may have in all; None: as many as the free
            memory allows.
        verbose: whether to show a progress bar.
    """

    exact: bool | None = None
    max_batch_tokens: int | None = None
    verbose: bool = False
