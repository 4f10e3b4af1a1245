"""`conformance`: every check on every variant of a model, as one report."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.subject import Inputs, Subject, kernel_of
from lensbridge.conformance.tiny import model_class, tiny_model
from lensbridge.errors import ConformanceError, LensbridgeError
from lensbridge.inputs.random import inputs_for
from lensbridge.spec import Architecture


class Variant(NamedTuple):
    """In what a model is built: dtype, and attention kernel (None: its own choice)."""

    dtype: torch.dtype
    kernel: str | None = None

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, {self.kernel or 'default'}"


CORE = (Variant(torch.float32),)
"""What is enough to tell a wrong description."""

EVERY = (
    Variant(torch.float32),
    Variant(torch.float32, "eager"),
    Variant(torch.float64),
    Variant(torch.bfloat16),
)
"""What an adapter is held to before it is published."""


@dataclass(frozen=True)
class Report:
    """What every check gave."""

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
        """One line."""
        counts = {
            status: sum(row.status == status for row in self.rows)
            for status in ("passed", "failed", "skipped")
        }
        told = ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "nothing checked"
        return f"{'conforms' if self.passed else 'does not conform'}: {told}"

    def require(self) -> "Report":
        """Itself, if it passed.

        Raises:
            ConformanceError: something failed; the message is the list of what did.
        """
        if not self.passed:
            raise ConformanceError(f"{self.verdict}\n{_lines(self.failures)}")
        return self

    def to_table(self, skipped: bool = True) -> str:
        """One line for each row, with the reason behind what did not pass."""
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
        class_name: which of its classes; None: the first.
        variant: dtype and kernel.
        seed: of the weights.
        fields: config fields to set beside those of `tiny_config`.

    Raises:
        LoadError: no model could be built, or the description does not fit it.
    """
    dtype, kernel = variant
    model = tiny_model(architecture, class_name, dtype=dtype, kernel=kernel, seed=seed, **fields)
    return subject_of(model, architecture)


def subject_of(
    model: nn.Module, architecture: Architecture | None = None, inputs: Inputs | None = None
) -> Subject:
    """A model as it is, ready to be checked; inputs are made for it where none are given."""
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
    """Check by behaviour that a model is what a description says.

    Args:
        subject: an architecture, of which tiny random models are built; or a model, which is
            checked as it is.
        architecture: with a model, the description to read it with; None: the registered one.
        inputs: with a model, keywords of its forward; made for it where none are given.
        variants: with an architecture, the dtypes and kernels; `CORE` or `EVERY`.
        classes: with an architecture, which of its classes; None: one for each config class.
        checks: which checks.
        fields: with an architecture, config fields of the tiny models.

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
    """Every check on one subject; a single row where its points cannot be read at all."""
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
        yield from _loaded(make, type(given).__name__, kernel_of(given))
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
