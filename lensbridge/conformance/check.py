"""A check and its result."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.failures import RUN_ERRORS, told
from lensbridge.conformance.subject import Subject
from lensbridge.errors import ConformanceError

Status = Literal["passed", "failed", "skipped"]
"""skipped: the model does not have what the check needs."""


@dataclass(frozen=True)
class Check:
    """A fact that has to hold for every model that has what it is about.

    Args:
        name: its name in reports.
        run: raises `ConformanceError` if the fact does not hold.
        falsifies: what a description could have wrong.
        needs: ends of names of points; the check applies if the model has a point for each.
        exact: whether it compares sums, for which half precision is too coarse.
    """

    name: str
    run: Callable[[Subject], None]
    falsifies: str
    needs: tuple[str, ...] = ()
    exact: bool = True

    def applies(self, subject: Subject) -> str | None:
        """The reason why it does not apply to a subject, or None if it does."""
        for point in self.needs:
            if not any(name.endswith(point) for name in subject.names):
                return f"no {point}"
        if self.exact and subject.is_half:
            return f"sums in {subject.dtype_name} are too coarse to compare"
        return None


@dataclass(frozen=True)
class Row:
    """The result of one check on one variant of a model.

    Args:
        about: what the description could have wrong if the check failed; else "".
        architecture: the name of the description, if it was read.
    """

    check: str
    model: str
    variant: str
    status: Status
    detail: str = ""
    seconds: float = 0.0
    about: str = ""
    architecture: str = ""

    def require(self) -> None:
        """Raise if the check failed.

        Raises:
            ConformanceError: it failed; the message is the detail.
        """
        if self.status == "failed":
            raise ConformanceError(self.detail)


def _told_apart(falsifies: str, detail: str) -> str:
    """What a check falsifies; only the field with whose name the detail begins, if it does so."""
    first, colon, _ = detail.partition(": ")
    name = first.rpartition(".")[2]
    return name if colon and name in falsifies.split(", ") else falsifies


def run_check(check: Check, subject: Subject) -> Row:
    """Run a check; it also fails if a run raises, or if it compares nothing."""
    started = perf_counter()
    name = subject.model.architecture.name

    def row(status: Status, detail: str = "") -> Row:
        seconds = perf_counter() - started
        about = _told_apart(check.falsifies, detail) if status == "failed" else ""
        told = (check.name, subject.label, subject.variant, status, detail)
        return Row(*told, seconds=seconds, about=about, architecture=name)

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
