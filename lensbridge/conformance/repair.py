"""The change with which a wrong description conforms: of one declaration, or of both branches."""

import re
from collections.abc import Iterable, Iterator, Sequence

from lensbridge.conformance.check import Check, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.failures import RUN_ERRORS
from lensbridge.conformance.mutation import Mutant, mutants
from lensbridge.conformance.offers import PAIR, offers
from lensbridge.conformance.subject import Subject
from lensbridge.errors import LensbridgeError

LARGEST = 20_000_000
"""The number of parameters above which changes are not tried, because each takes several runs."""

_CHANGED = re.compile(r"([\w.\[\]]+)(?: and (\w+) exchanged)?")


def repair(subject: Subject, failed: Sequence[str]) -> Mutant | None:
    """The first change after which no check fails; None if none is known.

    Args:
        subject: a model under a description that it does not conform to.
        failed: names of the checks that failed.
    """
    if sum(one.numel() for one in subject.hf_model.parameters()) > LARGEST:
        return None
    return next((one for one in _likely(subject, failed) if _conforms(subject, one, failed)), None)


def advice(subject: Subject, failed: Sequence[str]) -> tuple[str, ...]:
    """What the first failed check shows to be wrong, and the change that would be right."""
    mutant = repair(subject, failed)
    lines = (suspects(failed, mutant), "" if mutant is None else conforms_with(mutant))
    return tuple(line for line in lines if line)


def conforms_with(mutant: Mutant) -> str:
    """A sentence that names the change."""
    number = "two changes" if PAIR in mutant.change else "one change"
    return f"With {number} it conforms: {mutant.change}."


def suspects(failed: Sequence[str], mutant: Mutant | None) -> str:
    """A sentence that names what the first failed check is about, first what the change is of."""
    about = [word for name in failed[:1] for word in _about(name)]
    changed = [] if mutant is None else _fields(mutant)
    words = ", ".join(dict.fromkeys([*changed, *about]))
    return f"What the description may say wrongly: {words}." if words else ""


def _about(name: str) -> list[str]:
    """The words for what a check falsifies."""
    told = next((check.falsifies for check in CHECKS if check.name == name), "")
    return [word.strip() for word in told.split(",") if word]


def _fields(mutant: Mutant) -> list[str]:
    """Names of the fields that a change is of, without the path to them."""
    found = _CHANGED.match(mutant.change)
    assert found is not None
    last = re.sub(r"\[\d+\]$", "", found[1]).rpartition(".")[2]
    return [last, found[2]] if found[2] else [last]


def _likely(subject: Subject, failed: Sequence[str]) -> Iterator[Mutant]:
    """Every change; first those of what the first failed check is about, then the others'."""
    first = {word for name in failed[:1] for word in _about(name)}
    others = {word for name in failed for word in _about(name)} - first
    changes = [*mutants(subject.model.architecture), *offers(subject)]
    yield from _of(changes, first)
    yield from _of(changes, others)
    named = first | others
    yield from (one for one in changes if named.isdisjoint(_fields(one)))


def _of(changes: Iterable[Mutant], names: set[str]) -> Iterator[Mutant]:
    return (one for one in changes if not names.isdisjoint(_fields(one)))


def _conforms(subject: Subject, mutant: Mutant, failed: Sequence[str]) -> bool:
    try:
        changed = Subject(subject.hf_model, subject.inputs, mutant.architecture)
        if changed.unreadable:
            return False
    except (LensbridgeError, ArithmeticError, *RUN_ERRORS):
        return False
    return all(run_check(check, changed).status != "failed" for check in _ordered(failed))


def _ordered(failed: Sequence[str]) -> list[Check]:
    """Every check, those that failed first."""
    return sorted(CHECKS, key=lambda check: check.name not in failed)
