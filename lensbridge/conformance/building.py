"""The subjects of a run of the kit: tiny models of a description, or the model that was given."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from lensbridge.conformance.check import Row
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.passes import Inputs
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.tiny import check_fields, model_class, tiny_model
from lensbridge.errors import ArchitectureMismatchError, LensbridgeError, LoadError
from lensbridge.inputs.random import inputs_for
from lensbridge.native.settings import kernel_of
from lensbridge.native.wrappers import core_of
from lensbridge.spec import Architecture

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


def subjects_of(
    given: "Architecture | nn.Module | Subject",
    architecture: Architecture | None,
    inputs: Inputs | None,
    variants: Iterable[Variant],
    classes: Iterable[str] | None,
    fields: dict[str, Any],
) -> Iterator[Subject | Row]:
    """Every subject of what `conformance` is given, or a row that says why there is none."""
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
