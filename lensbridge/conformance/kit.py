"""`conformance`: every check on every variant of a model, as one report."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from lensbridge.conformance.arguments import checks_of, require_fitting, require_subject
from lensbridge.conformance.building import CORE, UNFIT, Variant, subject_of, subjects_of
from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.expect import INSENSITIVE
from lensbridge.conformance.other_weights import constants_of, with_other_weights
from lensbridge.conformance.passes import Inputs
from lensbridge.conformance.repair import advice
from lensbridge.conformance.report import Report
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.vocabulary_size import claims_of_vocabulary
from lensbridge.native.wrappers import core_of
from lensbridge.spec import Architecture

OTHER_WEIGHTS = "the same holds with other weights"
"""The row about a copy of a model that has constant parameters."""


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
            round; or the model does not run with the inputs; or a config has no such field; or
            something that is no model, no description or no check was given.

    Example:
        >>> from lensbridge_adapters.gpt2 import GPT2
        >>> conformance(GPT2).passed
        True
    """
    require_subject(subject)
    checks = checks_of(checks)
    classes = (classes,) if isinstance(classes, str) else classes
    require_fitting(subject, architecture, inputs, classes, fields)
    rows: list[Row] = []
    failing: Subject | None = None
    for one in subjects_of(subject, architecture, inputs, variants, classes, fields):
        found = [one] if isinstance(one, Row) else check_all(one, checks)
        if failing is None and isinstance(one, Subject) and _fails(found):
            failing = one
        rows += found
    if isinstance(subject, nn.Module):
        rows, copy = _with_other_weights(rows, subject, architecture, inputs, checks)
        failing = copy or failing
    return Report(tuple(rows), None if failing is None else partial(advice, failing))


def _fails(rows: Iterable[Row]) -> bool:
    return any(row.status == "failed" for row in rows)


def _with_other_weights(
    rows: list[Row],
    model: nn.Module,
    architecture: Architecture | None,
    inputs: Inputs | None,
    checks: Iterable[Check],
) -> tuple[list[Row], Subject | None]:
    """The rows of a model, and what its checks find on a copy in which no parameter is constant.

    The second is the copy, if a check fails on it.
    """
    constant = constants_of(model)
    if any(row.check == UNFIT for row in rows):
        return rows, None
    if not constant and not any(_is_insensitive(row) for row in rows):
        return rows, None
    label = type(core_of(model)).__name__
    copy = with_other_weights(model)
    if copy is None:
        return [*rows, Row(OTHER_WEIGHTS, label, "", "skipped", _unheld(constant))], None
    other = subject_of(copy, architecture, inputs)
    found = check_all(other, checks)
    held = {row.check for row in found if row.status == "passed"}
    own = [_excused(row) if _is_insensitive(row) and row.check in held else row for row in rows]
    failed = [replace(row, variant="other weights") for row in found if row.status == "failed"]
    changed = f"{len(constant)} of its parameters have one value in all places"
    told = failed or [Row(OTHER_WEIGHTS, label, "other weights", "passed", changed)]
    return [*own, *told], other if failed else None


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
    unsaid = (one for one in claims_of_vocabulary(subject) if not one.said)
    reason = next((f"{one.what}: {one.shown}." for one in unsaid), subject.unreadable)
    if reason:
        return [Row("every point can be read", subject.label, subject.variant, "failed", reason)]
    return [run_check(check, subject) for check in checks]
