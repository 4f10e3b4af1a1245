"""The change with which a wrong description conforms: of one declaration, or of both branches."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass

from lensbridge import spec
from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.failures import RUN_ERRORS
from lensbridge.conformance.mutation import TYPO, Mutant, mutants
from lensbridge.conformance.offers import PAIR, offers
from lensbridge.conformance.subject import Subject
from lensbridge.errors import LensbridgeError

LARGEST = 20_000_000
"""The number of parameters above which changes are not tried, because each takes several runs."""

_OF_PART = re.compile(r": [A-Z][A-Za-z]+ forgotten$")

_FIELDS = frozenset(
    field.name
    for one in vars(spec).values()
    if isinstance(one, type) and is_dataclass(one)
    for field in fields(one)
)
"""The names of all fields of descriptions."""

_CHANGED = re.compile(r"([\w.\[\]]+)(?: and ([\w.\[\]]+) exchanged| moved to ([\w.\[\]]+))?")


def repair(subject: Subject, failed: Sequence[str], about: str = "") -> Mutant | None:
    """The first change after which no check fails; None if none is known.

    Args:
        subject: a model under a description that it does not conform to.
        failed: names of the checks that failed.
        about: as in `suspects`.
    """
    if sum(one.numel() for one in subject.hf_model.parameters()) > LARGEST:
        return None
    likely = _likely(subject, failed, about)
    return next((one for one in likely if _conforms(subject, one, failed)), None)


def advice(subject: Subject, failures: Sequence[Row]) -> tuple[str, ...]:
    """What the first failed check that is about a field shows to be wrong, and the change that
    would be right."""
    rows = sorted(failures, key=lambda row: not _FIELDS & set(row.about.split(", ")))
    failed = [row.check for row in rows]
    about = rows[0].about
    mutant = repair(subject, failed, about)
    lines = (suspects(failed, mutant, about), "" if mutant is None else conforms_with(mutant))
    return tuple(line for line in lines if line)


def conforms_with(mutant: Mutant) -> str:
    """A sentence that names the change."""
    number = "two changes" if PAIR in mutant.change else "one change"
    return f"With {number} it conforms: {mutant.change}."


def suspects(failed: Sequence[str], mutant: Mutant | None, about: str = "") -> str:
    """A sentence that names what the first failed check is about, first what the change is of.

    Args:
        failed: names of the checks that failed.
        mutant: the change with which the model conforms.
        about: what the first one is about, if that is less than all that it falsifies.
    """
    changed = [] if mutant is None else _fields(mutant)
    words = ", ".join(dict.fromkeys([*changed, *_first(failed, about)]))
    return f"What the description may say wrongly: {words}." if words else ""


def _first(failed: Sequence[str], about: str) -> list[str]:
    """The words for what the first failed check is about."""
    return _words(about) or [word for name in failed[:1] for word in _about(name)]


def _about(name: str) -> list[str]:
    """The words for what a check falsifies."""
    return _words(next((check.falsifies for check in CHECKS if check.name == name), ""))


def _words(told: str) -> list[str]:
    return [word.strip() for word in told.split(",") if word]


def _fields(mutant: Mutant) -> list[str]:
    """Names of the fields that a change is of, without the path to them."""
    found = _CHANGED.match(mutant.change)
    assert found is not None
    return [_last(one) for one in found.groups() if one]


def _last(path: str) -> str:
    return re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]


def _likely(subject: Subject, failed: Sequence[str], about: str) -> Iterator[Mutant]:
    """Every change; first those of what the first failed check is about, then the others'.

    A whole part is left out last: a description that says less can conform although it is another
    field that is wrong.
    """
    first = set(_first(failed, about))
    others = {word for name in failed for word in _about(name)} - first
    known = (one for one in mutants(subject.model.architecture) if not one.change.endswith(TYPO))
    changes = sorted([*known, *offers(subject)], key=lambda one: bool(_OF_PART.search(one.change)))
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
