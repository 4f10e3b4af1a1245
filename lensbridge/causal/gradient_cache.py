"""Activations of one run with their gradients, for attributions of one's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.cache.capture import Keep
from lensbridge.errors import InputError
from lensbridge.gradients.points import GradientsAndActivations, gradients_of
from lensbridge.hooked_model import HookedModel
from lensbridge.nodes.units import enumerate_nodes, point_of
from lensbridge.points.point_names import NamesFilter


@dataclass(frozen=True)
class GradientCache:
    """What a run did, and what a metric's gradient by it is.

    Args:
        activations: by name of the point.
        gradients: by the same names; None where none were asked for.
        metric: of the run, `[]`.
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
    """Run an input forward and back from a metric, and keep both at some points.

    Args:
        model: the model.
        input: as for `forward`.
        metric: maps logits to one number.
        names_filter: at which points, as in `run_with_cache`; None: where nodes are attributed.
        compute_gradient: whether to go back.

    Raises:
        InputError: the metric gives no number, or is cut off from the logits.

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
    return GradientCache(dict(cache), dict.fromkeys(cache), metric(logits).detach())


def capture_writer_outputs(
    model: HookedModel, input: Any, names_filter: NamesFilter = None
) -> dict[str, Tensor]:
    """What each part writes to the stream in one run, heads one by one.

    Args:
        model: the model.
        input: as for `forward`.
        names_filter: which points; None: the embedding, every head, mixer and MLP.

    Raises:
        InputError: no point has such a name.
    """
    heads = "attn.hook_z", "attn.hook_result"
    names = [name.replace(*heads) for name in _nodes(model)]
    if names_filter is not None:
        names = model.vocabulary.select(names_filter)
    if not names:
        raise InputError(f"{names_filter!r} names no point of this model.")
    _, cache = model.run_with_cache(input, names_filter=names)
    return dict(cache)


def _nodes(model: HookedModel) -> list[str]:
    """The points of the nodes that are attributed by default."""
    return list(dict.fromkeys(point_of(model, node) for node in enumerate_nodes(model)))
