"""The report of the checks: its rows, its verdict, and how it is printed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lensbridge.conformance.check import Row
from lensbridge.conformance.held_blocks import UNHELD, unheld
from lensbridge.errors import ConformanceError

_MOST = 10
"""How many failures an error lists."""


@dataclass(frozen=True)
class Report:
    """The results of all checks.

    Args:
        rows: one for each check on each variant of a model.
        advise: what gives advice about the rows that failed.
    """

    rows: tuple[Row, ...]
    advise: "Callable[[Sequence[Row]], tuple[str, ...]] | None" = field(
        default=None, repr=False, compare=False
    )

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row.status == "failed"]

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        return not self.failures and any(row.status == "passed" for row in self.rows)

    @cached_property
    def advice(self) -> tuple[str, ...]:
        """What the first failed check shows to be wrong, and the change that would be right.

        Changes of the description are tried when this is first asked for, which takes seconds.
        """
        if not self.failures or self.advise is None:
            return ()
        return self.advise(self.failures)

    @property
    def verdict(self) -> str:
        """The result in one line, with the blocks that no layer of the model is read with."""
        counts = {
            status: sum(row.status == status for row in self.rows)
            for status in ("passed", "failed", "skipped")
        }
        told = ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "nothing checked"
        left = unheld(self.rows)
        more = f"; not held: {', '.join(left)}" if left else ""
        return f"{'conforms' if self.passed else 'does not conform'}: {told}{more}"

    def require(self) -> "Report":
        """The report itself, if it passed.

        Raises:
            ConformanceError: a check failed; the message begins with the advice, and lists all
                that did.
        """
        if not self.passed:
            listed = _lines(self.failures[:_MOST])
            rest = len(self.failures) - _MOST
            more = f"\nand {rest} more; print(report) shows them all" if rest > 0 else ""
            raise ConformanceError("\n".join([self.verdict, *self.advice, f"{listed}{more}"]))
        return self

    def to_table(self, skipped: bool = True) -> str:
        """One line for each row, with the reason if it did not pass."""
        shown = (row.status != "skipped" or row.check == UNHELD for row in self.rows)
        return _lines([row for row, told in zip(self.rows, shown, strict=True) if skipped or told])

    def __str__(self) -> str:
        return f"{self.to_table()}\n\n{self.verdict}"


def _lines(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    wide = max(len(row.check) for row in rows)
    variants = len({(row.model, row.variant) for row in rows}) > 1
    lines = []
    for row in rows:
        where = f"  {row.model} ({row.variant})" if variants else ""
        about = f"about {row.about}: " if row.about and row.status == "failed" else ""
        detail = f"  {about}{row.detail}" if row.detail else ""
        lines.append(f"{row.status:<8}{row.check:<{wide}}{where}{detail}".rstrip())
    return "\n".join(lines)
