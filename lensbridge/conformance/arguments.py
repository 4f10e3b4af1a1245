"""What `conformance` is given: what to check, arguments that fit it, and checks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lensbridge.conformance.building import distinct_classes
from lensbridge.conformance.check import Check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.failures import RUN_ERRORS
from lensbridge.conformance.passes import Inputs
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.tiny import check_fields, model_class
from lensbridge.errors import InputError, suggest
from lensbridge.native.calling import Calling
from lensbridge.native.resolve.vocabulary import require_description
from lensbridge.native.wrappers import core_of, unwrapped
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
            f"{'' if described else suggest(given[0], [*of_models, 'checks'])}"
        )
    if architecture is not None:
        require_description(architecture)
    if isinstance(subject, nn.Module) and inputs is not None:
        _require_runnable(subject, inputs)
    if isinstance(subject, Architecture) and fields:
        for name in classes or distinct_classes(subject):
            check_fields(model_class(subject, name).config_class, fields)


def _require_runnable(model: nn.Module, inputs: object) -> None:
    """Require keywords with which the model alone runs.

    Raises:
        InputError: they are no keywords, or the model does not run with them.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs is a {type(inputs).__name__}, and has to be the keywords of the model's "
            "forward: inputs={'input_ids': ids}."
        )
    try:
        with torch.no_grad():
            Calling.of(core_of(model)).call(unwrapped(model), inputs)
    except RUN_ERRORS as error:
        raise InputError(
            f"{type(core_of(model)).__name__} does not run with inputs={{{_shapes(inputs)}}}, also "
            f"without a description. It raised: {str(error).partition(chr(10))[0]}"
        ) from error


def _shapes(inputs: Mapping[Any, Any]) -> str:
    """Each input with its dtype and shape."""
    told = {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        if isinstance(value, torch.Tensor)
        else repr(value)
        for name, value in inputs.items()
    }
    return ", ".join(f"{name!r}: {value}" for name, value in told.items())


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
