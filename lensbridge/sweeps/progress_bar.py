"""ProgressBar: how far a sweep is and how long it will take."""

from tqdm.auto import tqdm

from lensbridge.steps import tell_step


class ProgressBar:
    """A progress bar of cells, some of which run together.

    Args:
        cells: how many the sweep has.
        shown: whether the bar is shown.
    """

    def __init__(self, cells: int, shown: bool) -> None:
        self._bar = tqdm(total=cells, disable=not shown, desc="patching", unit="cell")
        self._done = 0

    def done(self) -> None:
        """One more cell has its value."""
        self._done += 1
        self.reach(self._done)

    def under_way(self, cells: int, share: float) -> None:
        """Further cells are running, and this share of their work is done."""
        self.reach(self._done + int(cells * share))

    def close(self) -> None:
        """Stop, and leave the bar as it is."""
        self._bar.close()

    def reach(self, cells: int) -> None:
        """So many cells are done, or as good as."""
        tell_step(cells, self._bar.total)
        if cells > self._bar.n:
            self._bar.update(cells - self._bar.n)
