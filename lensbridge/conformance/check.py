"""A check and what it gave."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.subject import RUN_ERRORS, Subject, told
from lensbridge.errors import ConformanceError

Status = Literal["passed", "failed", "skipped"]
"""skipped: the model lacks what the check needs."""


@dataclass(frozen=True)
class Check:
    """One thing that must be so on every model that has what it is about.

    Args:
        name: what reports call it.
        run: raises `ConformanceError` where it is not so.
        falsifies: what a description could have said wrong.
        needs: last words of points; the check applies where the model has one of each.
        exact: whether it compares sums, which half precision cannot tell apart.
    """

    name: str
    run: Callable[[Subject], None]
    falsifies: str
    needs: tuple[str, ...] = ()
    exact: bool = True

    def applies(self, subject: Subject) -> str | None:
        """Why it does not apply to a subject; None where it does."""
        for point in self.needs:
            if not any(name.endswith(point) for name in subject.names):
                return f"no {point}"
        if self.exact and subject.is_half:
            return f"sums in {subject.dtype_name} are too coarse to compare"
        return None


@dataclass(frozen=True)
class Row:
    """What one check gave on one variant of a model."""

    check: str
    model: str
    variant: str
    status: Status
    detail: str = ""
    seconds: float = 0.0

    def require(self) -> None:
        """Nothing, unless it failed.

        Raises:
            ConformanceError: it failed; the message is the detail.
        """
        if self.status == "failed":
            raise ConformanceError(self.detail)


def run_check(check: Check, subject: Subject) -> Row:
    """Run a check; an error of the lens, or no comparison at all, is a failure."""
    started = perf_counter()

    def row(status: Status, detail: str = "") -> Row:
        seconds = perf_counter() - started
        return Row(check.name, subject.label, subject.variant, status, detail, seconds)

    reason = check.applies(subject)
    if reason is not None:
        return row("skipped", reason)
    made = subject.expect.made
    try:
        check.run(subject)
    except NotApplicable as why:
        return row("skipped", str(why))
    except RUN_ERRORS as error:
        return row("failed", told(error))
    if subject.expect.made == made:
        return row("failed", "the check applies, and it found nothing to compare")
    return row("passed")
