"""Activations of one run with their gradients, for attribution methods of your own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.cache.capture import Keep
from lensbridge.errors import InputError
from lensbridge.gradients.points import GradientsAndActivations, gradients_of
from lensbridge.hooked_model import HookedModel
from lensbridge.metrics import bound
from lensbridge.nodes.units import enumerate_nodes, point_of
from lensbridge.points.point_names import NamesFilter


@dataclass(frozen=True)
class GradientCache:
    """Activations of a run, and the gradients of a metric at them.

    Args:
        activations: by name of the point.
        gradients: by the same names; None if they were not asked for.
        metric: the metric of the run, `[]`.
    """

    activations: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]
    metric: Tensor


def cache_activation_and_gradient(
    model: HookedModel,
    input: Any,
    metric: Callable[[Tensor], Tensor],
    names_filter: NamesFilter = None,
    compute_gradient: bool = True,
) -> GradientCache:
    """Run an input forward and backward, and keep activations and gradients at some points.

    Args:
        model: the model.
        input: as for `forward`.
        metric: maps logits to one number.
        names_filter: at which points, as in `run_with_cache`; None: the points of the usual nodes.
        compute_gradient: whether to run backward.

    Raises:
        InputError: the metric does not give one number, or has no gradient.

    Example:
        >>> import lensbridge
        >>> from lensbridge.causal import cache_activation_and_gradient
        >>> model = lensbridge.load("demo")
        >>> cache = cache_activation_and_gradient(model, "The Eiffel Tower", lambda x: x[0, -1, 5])
        >>> cache.gradients["blocks.1.attn.hook_z"].shape
        torch.Size([1, 4, 4, 32])
    """
    names = _nodes(model) if names_filter is None else model.vocabulary.select(names_filter)
    if compute_gradient:
        found = gradients_of(model, input, names, metric, Keep(), return_activations=True)
        assert isinstance(found, GradientsAndActivations)
        return GradientCache(dict(found.activations), dict(found.gradients), found.value)
    logits, cache = model.run_with_cache(input, names_filter=names)
    measured = bound(model, input, {"metric": metric})["metric"](logits)
    return GradientCache(dict(cache), dict.fromkeys(cache), measured.detach())


def capture_writer_outputs(
    model: HookedModel, input: Any, names_filter: NamesFilter = None
) -> dict[str, Tensor]:
    """What each head, mixer and MLP writes to the residual stream in one run.

    Args:
        model: the model.
        input: as for `forward`.
        names_filter: which points; None: the embedding, every head, mixer and MLP.

    Raises:
        InputError: the filter matches no point.
    """
    heads = "attn.hook_z", "attn.hook_result"
    names = [name.replace(*heads) for name in _nodes(model)]
    if names_filter is not None:
        names = model.vocabulary.select(names_filter)
    if not names:
        raise InputError(f"{names_filter!r} matches no point of this model.")
    _, cache = model.run_with_cache(input, names_filter=names)
    return dict(cache)


def _nodes(model: HookedModel) -> list[str]:
    """The points of the nodes that are scored by default."""
    return list(dict.fromkeys(point_of(model, node) for node in enumerate_nodes(model)))
