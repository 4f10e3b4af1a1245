"""Accepts a derived description only if the conformance checks pass on that very model.

If a check fails, the part that it is about is described with less detail: attention and MLPs by
their inputs and outputs only, then whole layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from lensbridge.derive.phrases import words_for
from lensbridge.derive.reasons import explain, shortened
from lensbridge.derive.reductions import Reduction, reduced, reductions, without_branches
from lensbridge.errors import UnsupportedArchitectureError
from lensbridge.spec import Architecture

if TYPE_CHECKING:
    from torch import nn

    from lensbridge.conformance.check import Check, Row
    from lensbridge.conformance.subject import Subject
    from lensbridge.derive.derivation import Derivation

_TRIES = 12
_MOST = 5


def accepted(model: "nn.Module", derivation: "Derivation") -> "Derivation":
    """The derivation, or one with less detail, to which the model conforms.

    Raises:
        UnsupportedArchitectureError: there is none. The message names the part that could not be
            established, and where a starter adapter file comes from.
    """
    first = derivation
    reasons: dict[str, str] = {}
    tried: set[str] = set()
    for _ in range(_TRIES):
        if derivation.architecture is None:
            break
        told = first_failure(model, derivation.architecture)
        if told is None:
            missing = {**derivation.missing, **reasons}
            explained = explain(derivation.architecture, missing)
            words = tuple(words_for(explained))
            return replace(derivation, architecture=explained, established=words, missing=missing)
        part, smaller = _reduced(model, derivation.architecture, told)
        again = without_branches(derivation.architecture, smaller) - tried
        again = again if derivation.unwritten is not None else set()
        if again:
            derivation = _unwritten(derivation, again)
            tried |= again
            part = _named(derivation, min(again), "residual")
        else:
            derivation = replace(derivation, architecture=smaller)
        reasons[part] = told
    raise UnsupportedArchitectureError(_refusal(model, first, reasons))


def _reduced(model: "nn.Module", architecture: Architecture, told: str) -> Reduction:
    """The part that a failure is about, and a description without it.

    A description that does not fit the model names a module, and not what it is a part of. So each
    part is left out until the rest fits.
    """
    from lensbridge.conformance.building import UNFIT

    if told.startswith(f"{UNFIT}: "):
        for part, smaller in reductions(architecture, told):
            if not isinstance(_subject(model, smaller), str):
                return part, smaller
    return reduced(architecture, told)


def _unwritten(derivation: "Derivation", stacks: set[str]) -> "Derivation":
    """The derivation, in some stacks without how their branches are added to the stream."""
    ours, other = derivation.architecture, derivation.unwritten and derivation.unwritten()
    if ours is None or not other or other.architecture is None:
        return derivation
    theirs = other.architecture
    whole = theirs if theirs.prefix in stacks else ours
    pairs = zip(ours.towers, theirs.towers, strict=True)
    towers = tuple(new if new.prefix in stacks else old for old, new in pairs)
    inside = ("residual", "attn", "mixer", "mlp", "norms.pre_attn", "norms.pre_mlp")
    names = {_named(derivation, stack, part) for stack in stacks for part in inside}
    kept = {part: why for part, why in derivation.missing.items() if part not in names}
    found = {part: why for part, why in other.missing.items() if part in names}
    architecture = replace(whole, towers=towers)
    return replace(derivation, architecture=architecture, missing={**kept, **found})


def _named(derivation: "Derivation", stack: str, part: str) -> str:
    """The name of a part among what could not be established."""
    architecture = derivation.architecture
    is_main = architecture is None or architecture.prefix == stack
    return part if is_main else f"{stack} {part}"


def first_failure(model: "nn.Module", architecture: Architecture) -> str | None:
    """The first conformance check that a model fails under a description, with the reason.

    The model is left as it is: its modes, its gradients, the random number generator.
    """
    from lensbridge.derive.probe import probe_of
    from lensbridge.native.trial import undisturbed

    with undisturbed(model, gradients=True):
        failures = _failures(model, probe_of(model), architecture)
    return f"{failures[0].check}: {failures[0].detail}" if failures else None


def _failures(model: "nn.Module", probe: "nn.Module", architecture: Architecture) -> "list[Row]":
    """The first check that fails, on the copy or on the model itself; empty if all pass."""
    from lensbridge.conformance.checks import SOUND
    from lensbridge.conformance.expect import INSENSITIVE

    failures = _first_failure(probe, architecture, SOUND)
    if failures or probe is model:
        return failures
    return _first_failure(model, architecture, SOUND, INSENSITIVE)


def _first_failure(
    model: "nn.Module",
    architecture: Architecture,
    checks: "Sequence[Check]",
    passing: str = "\0",
) -> "list[Row]":
    from lensbridge.conformance.building import UNFIT
    from lensbridge.conformance.check import Row, run_check

    subject = _subject(model, architecture)
    if isinstance(subject, str):
        return [Row(UNFIT, type(model).__name__, "", "failed", subject)]
    rows = (run_check(check, subject) for check in checks)
    failed = (row for row in rows if row.status == "failed" and passing not in row.detail)
    return list(islice(failed, 1))


def _subject(model: "nn.Module", architecture: Architecture) -> "Subject | str":
    """The model under a description, or why the description does not fit it."""
    from lensbridge.conformance.building import subject_of
    from lensbridge.conformance.failures import RUN_ERRORS, told

    try:
        return subject_of(model, architecture)
    except RUN_ERRORS as error:
        return told(error)


def _refusal(model: "nn.Module", first: "Derivation", reasons: dict[str, str]) -> str:
    return "\n".join(_lines(model, first, reasons))


def _lines(model: "nn.Module", first: "Derivation", reasons: dict[str, str]) -> Iterator[str]:
    yield f"No architecture could be derived for {type(model).__name__} that conforms to it."
    why = {**first.missing, **reasons}
    for part, reason in list(why.items())[:_MOST]:
        yield f"- {part}: {shortened(reason)}"
    if len(why) > _MOST:
        yield f"- and {len(why) - _MOST} more parts"
    if first.architecture is not None:
        yield (
            "lensbridge.derive.derive(hf_model).render() is the adapter file of what could be "
            "derived. Correct it, and pass it as load(..., architecture=...)."
        )
