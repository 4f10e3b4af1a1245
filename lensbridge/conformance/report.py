"""`conformance`: every check on every variant of a model, as one report."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from lensbridge.conformance.arguments import checks_of, require_subject
from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.expect import INSENSITIVE, NotApplicable
from lensbridge.conformance.other_weights import constants_of, with_other_weights
from lensbridge.conformance.passes import Inputs
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.tiny import check_fields, model_class, tiny_model
from lensbridge.conformance.variants import UNHELD
from lensbridge.errors import (
    ArchitectureMismatchError,
    ConformanceError,
    InputError,
    LensbridgeError,
    LoadError,
)
from lensbridge.inputs.random import inputs_for
from lensbridge.native.settings import kernel_of
from lensbridge.native.wrappers import core_of
from lensbridge.spec import Architecture

_MOST = 10
"""How many failures an error lists."""

OTHER_WEIGHTS = "the same holds with other weights"
"""The row about a copy of a model that has constant parameters."""

UNFIT = "the description fits the model"
"""The row of a model that cannot be loaded with the description."""


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
        InputError: the config has no such field.
        NotApplicable: the model runs in float32 and not in the dtype of the variant.
    """
    dtype, kernel = variant
    check_fields(model_class(architecture, class_name).config_class, fields)
    settings = {"kernel": kernel, "seed": seed, **fields}
    try:
        model = tiny_model(architecture, class_name, dtype=dtype, **settings)
    except LoadError as error:
        if dtype == torch.float32:
            raise
        tiny_model(architecture, class_name, **settings)
        reason = str(error).partition(": ")[2].partition("; ")[0].partition(". Pass")[0]
        raise NotApplicable(f"the model does not run in {variant}: {reason}") from error
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
            checked itself. If some of its parameters are constant (gains of one, biases of zero),
            a copy with other weights is checked too.
        architecture: for a model, its description; None for the registered one.
        inputs: for a model, keywords of its forward; made for it unless they are given.
        variants: for an architecture, the dtypes and kernels; `CORE` or `EVERY`.
        classes: for an architecture, which of its classes, or the name of one; None for one of each
            config class.
        checks: the checks to run.
        fields: for an architecture, config fields of the tiny models.

    Raises:
        InputError: an argument that is for a model was given with an architecture, or the other way
            round; or a config has no such field; or something that is no model, no description or
            no check was given.

    Example:
        >>> from lensbridge_adapters.gpt2 import GPT2
        >>> conformance(GPT2).passed
        True
    """
    require_subject(subject)
    checks = checks_of(checks)
    classes = (classes,) if isinstance(classes, str) else classes
    _check_arguments(subject, architecture, inputs, classes, fields)
    rows: list[Row] = []
    for one in _subjects(subject, architecture, inputs, variants, classes, fields):
        rows += [one] if isinstance(one, Row) else check_all(one, checks)
    if isinstance(subject, nn.Module):
        rows = _with_other_weights(rows, subject, architecture, inputs, checks)
    return Report(tuple(rows))


def _check_arguments(
    subject: "Architecture | nn.Module | Subject",
    architecture: Architecture | None,
    inputs: Inputs | None,
    classes: Iterable[str] | None,
    fields: Mapping[str, Any],
) -> None:
    of_models = {"architecture": architecture, "inputs": inputs}
    of_descriptions = {"classes": classes, **fields}
    wrong = of_models if isinstance(subject, Architecture) else of_descriptions
    given = [name for name, value in wrong.items() if value is not None]
    if given:
        described = isinstance(subject, Architecture)
        kind = "a description" if described else f"a {type(subject).__name__}"
        other = "a model" if described else "a description, of which tiny models are built"
        raise InputError(
            f"conformance was given {kind} and {', '.join(given)}, which "
            f"{'is' if len(given) == 1 else 'are'} for {other}."
        )
    if isinstance(subject, Architecture) and fields:
        for name in classes or distinct_classes(subject):
            check_fields(model_class(subject, name).config_class, fields)


def _with_other_weights(
    rows: list[Row],
    model: nn.Module,
    architecture: Architecture | None,
    inputs: Inputs | None,
    checks: Iterable[Check],
) -> list[Row]:
    """The rows of a model, and what its checks find on a copy in which no parameter is constant."""
    constant = constants_of(model)
    if not constant and not any(_is_insensitive(row) for row in rows):
        return rows
    label = type(core_of(model)).__name__
    copy = with_other_weights(model)
    if copy is None:
        return [*rows, Row(OTHER_WEIGHTS, label, "", "skipped", _unheld(constant))]
    found = check_all(subject_of(copy, architecture, inputs), checks)
    held = {row.check for row in found if row.status == "passed"}
    own = [_excused(row) if _is_insensitive(row) and row.check in held else row for row in rows]
    failed = [replace(row, variant="other weights") for row in found if row.status == "failed"]
    changed = f"{len(constant)} of its parameters have one value in all places"
    return [*own, *(failed or [Row(OTHER_WEIGHTS, label, "other weights", "passed", changed)])]


def _unheld(constant: Sequence[str]) -> str:
    some = ", ".join(constant[:3]) + (", ..." if len(constant) > 3 else "")
    return (
        f"the model cannot be copied, and {len(constant)} of its parameters have one value in all "
        f"places ({some}): what they scale or add does not show"
    )


def _is_insensitive(row: Row) -> bool:
    return row.status == "failed" and INSENSITIVE in row.detail


def _excused(row: Row) -> Row:
    why = "on a copy with other weights: its own are too small for an edit to show"
    return replace(row, status="passed", detail=why)


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
        try:
            chosen = list(distinct_classes(given) if classes is None else classes)
        except ArchitectureMismatchError as error:
            yield Row(UNFIT, given.name, "", "failed", str(error))
            return
        for name in chosen:
            for variant in variants:
                make = partial(build, given, name, variant=variant, **fields)
                yield from _loaded(make, name, str(variant))


def _loaded(make: Callable[[], Subject], label: str, variant: str) -> Iterator[Subject | Row]:
    try:
        yield make()
    except NotApplicable as why:
        yield Row("the model runs", label, variant, "skipped", str(why))
    except LensbridgeError as error:
        yield Row(UNFIT, label, variant, "failed", str(error))


def distinct_classes(architecture: Architecture) -> Iterator[str]:
    """The first class of each config class that an architecture describes."""
    seen = set()
    for name in architecture.classes:
        config_class = model_class(architecture, name).config_class
        if config_class not in seen:
            seen.add(config_class)
            yield name
