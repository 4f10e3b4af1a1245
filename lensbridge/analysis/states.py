"""Activations at one position of each text, or at several, as one tensor."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import position_axis
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.points.point_names import NamesFilter
from lensbridge.tensors.position_forms import as_positions
from lensbridge.tensors.positions import Count
from lensbridge.tensors.slices import PosSlice


def states_at(
    model: HookedModel,
    input: Any,
    site: NamesFilter = "resid_post",
    positions: PosSlice = "last",
    *,
    count: Count = "tokens",
    **options: Any,
) -> Tensor:
    """Activations at each text's last token, or at other positions, as one tensor.

    Only these are kept, and the run ends after the last layer that has one.

    Args:
        model: the model.
        input: as in `forward`; texts may have different lengths.
        site: a point, or several, such as a short name for all layers.
        positions: which tokens of each text; of a list or a mask, as many of each.
        count: "columns" counts the columns of the padded batch instead.
        options: `prepend_bos` and other options of `run_with_cache`.

    Shapes: `[point, example, pos, ...]`; without the axis of points if one point is named, and
        without that of positions for a single position.

    Raises:
        InputError: a text lacks a position, the points have different shapes, or one of them has no
            examples or positions.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> texts = ["The Eiffel Tower is in the city of", "The Galata Tower is in"]
        >>> model.states_at(texts).shape
        torch.Size([4, 2, 128])
        >>> model.states_at(texts, ("resid_post", 2), model.positions_of("Tower", texts)).shape
        torch.Size([2, 1, 128])
    """
    names = model.vocabulary.select(site)
    keep: dict[str, Any] = {"pos_slice": positions, "count": count, "return_type": None}
    _, cache = model.run_with_cache(input, names, **keep, **options)
    single = isinstance(as_positions(positions, "positions", tuples="slice"), int | str)
    values = [_of(cache, name, single) for name in names]
    if _is_one(site, names):
        return values[0]
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise InputError(f"{site!r} means points of different shapes: {sorted(shapes)}. Name some.")
    return torch.stack([value.to(values[0].device) for value in values])


def _of(cache: ActivationCache, name: str, single: bool) -> Tensor:
    """Shapes: `[example, pos, ...]`, without the axis of positions for a single one"""
    axes = cache.axes(name).split()
    axis = position_axis(" ".join(axes))
    if axis is None or "b" not in axes:
        raise InputError(f"{name} has the axes {' '.join(axes)}: no examples or no positions.")
    value = cache[name].movedim((axes.index("b"), axis), (0, 1))
    return value[:, 0] if single else value


def _is_one(site: Any, names: list[str]) -> bool:
    """Whether a site names one point, rather than a kind of which there happens to be one."""
    plain = isinstance(site, str) and ("." in site or site == names[0]) and "*" not in site
    return len(names) == 1 and (isinstance(site, tuple) or plain)
