"""What `conformance` is given: a subject that can be checked, and checks."""

from collections.abc import Iterable

from torch import nn

from lensbridge.conformance.check import Check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.subject import Subject
from lensbridge.errors import InputError, suggest
from lensbridge.spec import Architecture


def require_subject(given: object) -> None:
    """Require something that can be checked.

    Raises:
        InputError: it is no model and no description.
    """
    if not isinstance(given, Architecture | nn.Module | Subject):
        raise InputError(
            "conformance checks a HuggingFace model, or a description (Architecture) of which it "
            f"builds tiny models. It was given {given!r}, a {type(given).__name__}."
        )


def checks_of(given: Iterable[object]) -> tuple[Check, ...]:
    """The checks that were given.

    Raises:
        InputError: something else was given, such as the name of a check.
    """
    items = (given,) if isinstance(given, str | Check) else tuple(given)
    checks = tuple(one for one in items if isinstance(one, Check))
    wrong = [one for one in items if not isinstance(one, Check)]
    if wrong:
        raise InputError(
            f"checks has {wrong[0]!r}, which is no Check. To run some of the checks, choose them "
            "from lensbridge.testing.CHECKS: [one for one in CHECKS if one.name == 'the stream "
            f"adds up'].{suggest(str(wrong[0]), [check.name for check in CHECKS])}"
        )
    return checks
