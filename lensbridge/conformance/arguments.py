"""What `conformance` is given: what to check, arguments that fit it, and checks."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lensbridge.conformance.building import distinct_classes
from lensbridge.conformance.check import Check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.passes import Inputs
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.tiny import check_fields, model_class
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


def require_fitting(
    subject: "Architecture | nn.Module | Subject",
    architecture: Architecture | None,
    inputs: Inputs | None,
    classes: Iterable[str] | None,
    fields: Mapping[str, Any],
) -> None:
    """Require that each argument is one for what is checked, a model or a description.

    Raises:
        InputError: one is for the other, or names no field of the config.
    """
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
