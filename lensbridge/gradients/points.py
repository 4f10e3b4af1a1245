"""Gradients of one number at points of a model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.apart import runs_for
from lensbridge.cache.capture import GRAD, Keep
from lensbridge.errors import InputError
from lensbridge.gradients.backward import Backward, Objective, differentiable
from lensbridge.hooked_model import HookedModel
from lensbridge.points.point_names import NamesFilter


class Gradients(NamedTuple):
    """What `model.gradients` returns: the number, and its gradients by name of the point."""

    value: Tensor
    gradients: ActivationCache


class GradientsAndActivations(NamedTuple):
    """What `model.gradients` returns with `return_activations`: also the activations."""

    value: Tensor
    gradients: ActivationCache
    activations: ActivationCache


def gradients_of(
    model: HookedModel,
    input: Any,
    names_filter: NamesFilter,
    of: Objective,
    keep: Keep,
    *,
    at: NamesFilter = None,
    return_activations: bool = False,
    **forward: Any,
) -> Gradients | GradientsAndActivations:
    """See `model.gradients`."""
    how: dict[str, Any] = {"at": at, "return_activations": return_activations}
    return gradients_of_each(model, input, names_filter, [of], keep, **how, **forward)[0]


def gradients_of_each(
    model: HookedModel,
    input: Any,
    names_filter: NamesFilter,
    several: Sequence[Objective],
    keep: Keep,
    *,
    at: NamesFilter = None,
    return_activations: bool = False,
    **forward: Any,
) -> list[Gradients | GradientsAndActivations]:
    """Gradients of several numbers: one run forward, and one back for each; see `model.gradients`.

    Raises:
        InputError: there is no objective, or one does not give one number.
    """
    if not several:
        raise InputError("of is empty: there is nothing to differentiate.")
    checked = [Backward.of_points(model, of, at, keep, names_filter) for of in several]
    names = differentiable(model.vocabulary.select(names_filter), checked[0].required)
    if not names:
        raise InputError(f"names_filter={names_filter!r} selects no point with a gradient.")
    runs = [checked[0].runs(input, some, forward, several) for some in runs_for(names)]
    return [_joined(names, list(parts), return_activations) for parts in zip(*runs, strict=True)]


def _joined(
    names: Sequence[str], runs: Sequence[tuple[Tensor, ActivationCache]], return_activations: bool
) -> Gradients | GradientsAndActivations:
    """The gradients of one number, from the runs that each give some of them."""
    value, cache = runs[0]
    tensors = {name: tensor for _, one in runs for name, tensor in one.items()}
    found = cache.with_tensors({name: tensors[name + GRAD] for name in names})
    if not return_activations:
        return Gradients(value, found)
    kept = cache.with_tensors({name: tensors[name] for name in names})
    return GradientsAndActivations(value, found, kept)
