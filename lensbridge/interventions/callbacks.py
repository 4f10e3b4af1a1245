"""Interventions as callbacks of the engine: one plan for each point that a site means."""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback
from lensbridge.interventions.fit import called
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan
from lensbridge.interventions.source import Source, StoredSource
from lensbridge.interventions.when import When
from lensbridge.points.point_names import names_points
from lensbridge.sites.modules import UNKNOWN


def callbacks_of(
    model: HookedModel, interventions: "Intervention | Iterable[Intervention]"
) -> list[Callback]:
    """Interventions as callbacks, in their order, checked as far as possible before a run.

    Raises:
        InputError: something is not an intervention, or heads, neurons, values or sources do not
            fit.
        UnknownPointError: no point has the name.
        AbsentPointError: this architecture lacks a point.
        EditError: a point cannot be edited.
    """
    several = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    found: list[Callback] = []
    for one in several:
        if not isinstance(one, Intervention):
            raise InputError(
                f"{one!r} is no intervention. lensbridge.interventions has Replace, Add, Zero..."
            )
        found += _callbacks(model, one)
    return found


def acting(interventions: "Intervention | Iterable[Intervention]") -> list[Intervention]:
    """Interventions as a list, for a run that does not generate.

    Raises:
        InputError: an intervention acts only on tokens that generation adds.
    """
    several = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    for one in several:
        if isinstance(one, Intervention) and not When.of(one.when).reaches_prompt:
            raise InputError(
                f"{called(one)} at {one.site!r} acts on tokens that generation adds ({one.when}), "
                "and this run adds none. Pass it to generate()."
            )
    return several


def _callbacks(model: HookedModel, one: Intervention) -> list[Callback]:
    required = names_points(one.site)
    return [
        Callback(
            plan.name,
            "edit",
            plan.run,
            str(one.site),
            required,
            by_row=one.works_by_row,
            check=plan.check,
        )
        for plan in plans_of(model, one)
    ]


def plans_of(model: HookedModel, one: Intervention) -> list[Plan]:
    """An intervention at each of its points.

    Raises:
        InputError: the intervention does not fit one of them.
    """
    names = model.vocabulary.select(one.site)
    if isinstance(one.origin, Tensor) and len(names) > 1:
        raise InputError(
            f"{called(one)}: the source is one tensor, but {one.site!r} means {len(names)} points. "
            "Give a cache, or a mapping from names to tensors."
        )
    unknown = next((name for name in names if model.engine.sites[name].axes == UNKNOWN), None)
    if unknown is not None:
        raise InputError(
            f"{called(one)} at {unknown}: which axes the value has is known once a run shows it. "
            f"Read it first, model.run_with_cache(input, {unknown!r}), or edit it with a hook."
        )
    origin = with_canonical_names(model, one.origin)
    return [Plan.of(model, one, name, origin) for name in names]


def with_canonical_names(model: HookedModel, source: Source | None) -> Source | None:
    """A source whose activations have canonical names."""
    if source is None or isinstance(source, Tensor | ActivationCache):
        return source
    named = {model.vocabulary.canonical(name): tensor for name, tensor in source.items()}
    return replace(source, tensors=named) if isinstance(source, StoredSource) else named
