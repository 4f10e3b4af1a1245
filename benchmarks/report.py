"""The table: one row for each thing measured, as text and as markdown."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.timing import Spread

Unit = Literal["x", "us"]
HEADS = ("work", "model", "measured against", "result", "budget", "verdict")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        work: what lensbridge did.
        model: on which model.
        against: what it is compared with.
        measured: lensbridge's cost as a multiple of the other's ("x"), or microseconds ("us").
        budget: what it may cost at most, where there is a budget.
        unit: of `measured` and `budget`.
        missing: why nothing was measured.
    """

    work: str
    model: str
    against: str
    measured: Spread | None
    budget: float | None = None
    unit: Unit = "x"
    missing: str = ""

    @property
    def verdict(self) -> str:
        """Whether the budget was kept, as far as the noise allows to say."""
        if self.measured is None or self.budget is None:
            return ""
        if self.measured.middle <= self.budget:
            return "met"
        return "within noise" if self.measured.low <= self.budget else "missed"

    def cells(self) -> tuple[str, ...]:
        """What the columns hold."""
        budget = "" if self.budget is None else self._number(self.budget)
        return (self.work, self.model, self.against, self._result(), budget, self.verdict)

    def _result(self) -> str:
        if self.measured is None:
            return self.missing
        numbers = [self.measured.low, self.measured.high]
        low, high = (self._number(one).removesuffix(self._mark) for one in numbers)
        return f"{self._number(self.measured.middle)} ({low} to {high})"

    @property
    def _mark(self) -> str:
        return "x" if self.unit == "x" else " µs"

    def _number(self, value: float) -> str:
        return f"{value:.2f}{self._mark}" if self.unit == "x" else f"{value:.1f}{self._mark}"


def as_text(rows: Iterable[Row]) -> str:
    """The table for a terminal."""
    table = [HEADS, *(row.cells() for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(HEADS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) for cells in table]
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(rows: Iterable[Row]) -> str:
    """The table for a document."""
    table = [HEADS, ("---",) * len(HEADS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
