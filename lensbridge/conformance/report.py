"""`conformance`: every check on every variant of a model, as one report."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.subject import Inputs, Subject
from lensbridge.conformance.tiny import model_class, tiny_model
from lensbridge.errors import ConformanceError, LensbridgeError
from lensbridge.inputs.random import inputs_for
from lensbridge.native.settings import kernel_of
from lensbridge.native.wrappers import core_of
from lensbridge.spec import Architecture

_MOST = 10
"""How many failures an error lists."""


class Variant(NamedTuple):
    """The dtype and attention kernel of a model (None for its default kernel)."""

    dtype: torch.dtype
    kernel: str | None = None

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, {self.kernel or 'default'}"


CORE = (Variant(torch.float32),)
"""The variant that is enough to find a wrong description."""

EVERY = (
    Variant(torch.float32),
    Variant(torch.float32, "eager"),
    Variant(torch.float64),
    Variant(torch.bfloat16),
)
"""The variants with which an adapter should be checked before it is published."""


@dataclass(frozen=True)
class Report:
    """The results of all checks."""

    rows: tuple[Row, ...]

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row.status == "failed"]

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        return not self.failures and any(row.status == "passed" for row in self.rows)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        counts = {
            status: sum(row.status == status for row in self.rows)
            for status in ("passed", "failed", "skipped")
        }
        told = ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "nothing checked"
        return f"{'conforms' if self.passed else 'does not conform'}: {told}"

    def require(self) -> "Report":
        """The report itself, if it passed.

        Raises:
            ConformanceError: a check failed; the message lists all that did.
        """
        if not self.passed:
            listed = _lines(self.failures[:_MOST])
            rest = len(self.failures) - _MOST
            more = f"\nand {rest} more; print(report) shows them all" if rest > 0 else ""
            raise ConformanceError(f"{self.verdict}\n{listed}{more}")
        return self

    def to_table(self, skipped: bool = True) -> str:
        """One line for each row, with the reason if it did not pass."""
        return _lines([row for row in self.rows if skipped or row.status != "skipped"])

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
        detail = f"  {row.detail}" if row.detail else ""
        lines.append(f"{row.status:<8}{row.check:<{wide}}{where}{detail}".rstrip())
    return "\n".join(lines)


def build(
    architecture: Architecture,
    class_name: str | None = None,
    *,
    variant: Variant = CORE[0],
    seed: int = 0,
    **fields: Any,
) -> Subject:
    """A tiny random model of an architecture, ready to be checked.

    Args:
        architecture: the description to check.
        class_name: which of its classes; None for the first.
        variant: dtype and kernel.
        seed: the seed of the weights.
        fields: config fields to set besides those of `tiny_config`.

    Raises:
        LoadError: no model could be built, or the description does not fit it.
    """
    dtype, kernel = variant
    model = tiny_model(architecture, class_name, dtype=dtype, kernel=kernel, seed=seed, **fields)
    return subject_of(model, architecture)


def subject_of(
    model: nn.Module, architecture: Architecture | None = None, inputs: Inputs | None = None
) -> Subject:
    """A given model, ready to be checked; inputs are made for it unless they are given."""
    return Subject(model, inputs or inputs_for(model), architecture)


def conformance(
    subject: "Architecture | nn.Module | Subject",
    *,
    architecture: Architecture | None = None,
    inputs: Inputs | None = None,
    variants: Iterable[Variant] = CORE,
    classes: Iterable[str] | None = None,
    checks: Iterable[Check] = CHECKS,
    **fields: Any,
) -> Report:
    """Check, by running a model, that a description is right.

    Args:
        subject: an architecture, of which tiny random models are built; or a model, which is
            checked itself.
        architecture: for a model, its description; None for the registered one.
        inputs: for a model, keywords of its forward; made for it unless they are given.
        variants: for an architecture, the dtypes and kernels; `CORE` or `EVERY`.
        classes: for an architecture, which of its classes; None for one of each config class.
        checks: the checks to run.
        fields: for an architecture, config fields of the tiny models.

    Example:
        >>> from lensbridge_adapters.gpt2 import GPT2
        >>> conformance(GPT2).passed
        True
    """
    rows: list[Row] = []
    for one in _subjects(subject, architecture, inputs, variants, classes, fields):
        rows += [one] if isinstance(one, Row) else check_all(one, checks)
    return Report(tuple(rows))


def check_all(subject: Subject, checks: Iterable[Check] = CHECKS) -> list[Row]:
    """Every check on one subject; a single row if its points cannot be read at all."""
    reason = subject.unreadable
    if reason:
        return [Row("every point can be read", subject.label, subject.variant, "failed", reason)]
    return [run_check(check, subject) for check in checks]


def _subjects(
    given: "Architecture | nn.Module | Subject",
    architecture: Architecture | None,
    inputs: Inputs | None,
    variants: Iterable[Variant],
    classes: Iterable[str] | None,
    fields: dict[str, Any],
) -> Iterator[Subject | Row]:
    if isinstance(given, Subject):
        yield given
    elif isinstance(given, nn.Module):
        make = partial(subject_of, given, architecture, inputs)
        core = core_of(given)
        yield from _loaded(make, type(core).__name__, kernel_of(core))
    else:
        chosen = list(classes) if classes is not None else list(distinct_classes(given))
        for name in chosen:
            for variant in variants:
                make = partial(build, given, name, variant=variant, **fields)
                yield from _loaded(make, name, str(variant))


def _loaded(make: Callable[[], Subject], label: str, variant: str) -> Iterator[Subject | Row]:
    try:
        yield make()
    except LensbridgeError as error:
        yield Row("the description fits the model", label, variant, "failed", str(error))


def distinct_classes(architecture: Architecture) -> Iterator[str]:
    """The first class of each config class that an architecture describes."""
    seen = set()
    for name in architecture.classes:
        config_class = model_class(architecture, name).config_class
        if config_class not in seen:
            seen.add(config_class)
            yield name
