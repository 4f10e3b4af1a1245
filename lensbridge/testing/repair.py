"""The change of one declaration with which a wrong description conforms."""

from collections.abc import Iterator, Sequence

from lensbridge.conformance.check import Check, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.subject import Subject
from lensbridge.errors import LensbridgeError
from lensbridge.testing.mutation import Mutant, mutants

LARGEST = 20_000_000
"""The number of parameters above which changes are not tried, because each takes several runs."""


def repair(subject: Subject, failed: Sequence[str]) -> Mutant | None:
    """The first change of one declaration after which no check fails; None if none is known.

    Args:
        subject: a model under a description that it does not conform to.
        failed: names of the checks that failed.
    """
    if sum(one.numel() for one in subject.hf_model.parameters()) > LARGEST:
        return None
    return next((one for one in _likely(subject, failed) if _conforms(subject, one, failed)), None)


def conforms_with(mutant: Mutant) -> str:
    """A sentence that names the change."""
    return f"With one change it conforms: {mutant.change}."


def _likely(subject: Subject, failed: Sequence[str]) -> Iterator[Mutant]:
    """Every mutant; first those of declarations that the failed checks are about."""
    about = {
        word.strip()
        for check in CHECKS
        if check.name in failed
        for word in check.falsifies.split(",")
    }
    rest = []
    for mutant in mutants(subject.model.architecture):
        field = mutant.change.partition(":")[0].partition(" ")[0].rpartition(".")[2]
        if field in about:
            yield mutant
        else:
            rest.append(mutant)
    yield from rest


def _conforms(subject: Subject, mutant: Mutant, failed: Sequence[str]) -> bool:
    try:
        changed = Subject(subject.hf_model, subject.inputs, mutant.architecture)
    except LensbridgeError:
        return False
    if changed.unreadable:
        return False
    return all(run_check(check, changed).status != "failed" for check in _ordered(failed))


def _ordered(failed: Sequence[str]) -> list[Check]:
    """Every check, those that failed first."""
    return sorted(CHECKS, key=lambda check: check.name not in failed)
