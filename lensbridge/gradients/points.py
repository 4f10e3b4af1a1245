"""Gradients of one number at points of a model."""

from typing import Any, NamedTuple

from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.apart import runs_for
from lensbridge.cache.capture import GRAD, Keep
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
    backward = Backward.of_points(model, of, at, keep, names_filter)
    names = differentiable(model.vocabulary.select(names_filter), backward.required)
    runs = [backward.run(input, some, forward) for some in runs_for(names)]
    value, cache = runs[0]
    tensors = {name: tensor for _, one in runs for name, tensor in one.items()}
    found = cache.with_tensors({name: tensors[name + GRAD] for name in names})
    if not return_activations:
        return Gradients(value, found)
    kept = cache.with_tensors({name: tensors[name] for name in names})
    return GradientsAndActivations(value, found, kept)
