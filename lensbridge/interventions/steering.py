"""Steering vectors: directions from pairs of contrasting texts."""

from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.positions import ColumnOwner, column_owner
from lensbridge.inputs.special import Excluded, is_special, known_special_ids
from lensbridge.interventions.axis import Axes
from lensbridge.interventions.interchange import source_of
from lensbridge.interventions.kinds import Steer
from lensbridge.points.names import Name

Method = Literal["mean_difference", "pca"]
"""mean_difference: the mean of the positive examples less that of the negative ones. pca: the first
principal direction of the differences of pairs."""


def steering_vector(
    model: HookedModel,
    positive: Any,
    negative: Any,
    site: Name,
    position: int | Literal["mean", "last"] = -1,
    method: Method = "mean_difference",
    exclude_special_tokens: Excluded = True,
    **input_options: Any,
) -> Steer:
    """A steering vector: the direction from examples without a property to examples that have it.

    Args:
        model: the model.
        positive: texts or ids with the property.
        negative: texts or ids without it.
        site: where activations are read, and where the result steers.
        position: which token of each example, without padding: -1 or "last" is the last one;
            "mean" takes the mean of all.
        method: "mean_difference": the mean of the positive activations minus that of the negative
            ones, not normalized. "pca": the first principal direction of the differences of pairs
            (as many examples on both sides), not centred, of length one, pointing from negative to
            positive.
        exclude_special_tokens: leave BOS, EOS, padding and separators out of a mean; or the ids
            of the tokens that are left out.
        input_options: `prepend_bos` and other options of `run_with_cache`.

    Returns:
        A `Steer` with strength 1 at every position; `.at(strength=4.0, positions="last")` changes
        that.

    Shapes: the vector has the axes of the point after its positions: `[d_model]`, or
        `[head, d_head]`.

    Raises:
        InputError: the site means several points, an example lacks the position or has only
            special tokens, or "pca" has unequal numbers of examples.

    Source: mean differences as in Turner et al. 2023 and Rimsky et al. 2023; principal directions
        of differences as in Zou et al. 2023.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> towers = ["The Eiffel Tower"], ["The Galata Tower"]
        >>> steer = steering_vector(model, *towers, ("mlp_out", 1))
        >>> steer.vector.shape
        torch.Size([128])
    """
    if method not in ("mean_difference", "pca"):
        raise InputError(f"method is 'mean_difference' or 'pca', not {method!r}.")
    names = model.vocabulary.select(site)
    if len(names) != 1:
        raise InputError(f"{site!r} means {len(names)} points; a steering vector is of one.")
    special = known_special_ids(model.tokens, model.native, exclude_special_tokens)
    owner = column_owner(model.native, names[0])
    up, down = (
        _activations(
            source_of(model, given, names, **input_options), names[0], position, special, owner
        )
        for given in (positive, negative)
    )
    vector = up.mean(0) - down.mean(0) if method == "mean_difference" else _principal(up, down)
    return Steer(names[0], vector)


def _activations(
    cache: ActivationCache,
    name: str,
    position: int | str,
    special: frozenset[int],
    owner: ColumnOwner,
) -> Tensor:
    """One vector for each example. Shapes: `[example, ...]`"""
    value = cache[name]
    axes = cache.axes(name).split()
    if not {"b", "p"} <= set(axes):
        raise InputError(
            f"{name} has the axes {' '.join(axes)}; a steering vector needs a point with examples "
            "and positions."
        )
    value = Axes(tuple(axes)).ordered(value)
    real = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
    known = owner in ("text", "encoder")
    mask = cache.decoder_attention_mask if owner == "decoder" else cache.attention_mask
    if mask is not None and mask.shape == real.shape:
        real = mask.bool().to(value.device)
    if position == "mean":
        if known and special and cache.tokens is not None and cache.tokens.shape == real.shape:
            real = real & ~is_special(cache.tokens, special).to(real.device)
        return _mean(value, real)
    position = -1 if position == "last" else position
    return torch.stack([_at(row, mask, position) for row, mask in zip(value, real, strict=True)])


def _mean(value: Tensor, real: Tensor) -> Tensor:
    empty = (~real.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"Example {empty[0]} has only special tokens, which a mean leaves out. Pass "
            "exclude_special_tokens=False, or longer texts."
        )
    weight = real.to(value).reshape(*real.shape, *[1] * (value.ndim - 2))
    return (value * weight).sum(1) / weight.sum(1)


def _at(row: Tensor, mask: Tensor, position: int | str) -> Tensor:
    tokens = row[mask]
    if not isinstance(position, int) or not -len(tokens) <= position < len(tokens):
        raise InputError(
            "position is 'mean', 'last' or the number of a token, and an example has "
            f"{len(tokens)} tokens; got {position!r}."
        )
    return tokens[position]


def _principal(up: Tensor, down: Tensor) -> Tensor:
    if len(up) != len(down):
        raise InputError(
            f"'pca' takes the differences of pairs, but there are {len(up)} positive and "
            f"{len(down)} negative examples."
        )
    differences = (up - down).flatten(1).double()
    _, _, directions = torch.linalg.svd(differences, full_matrices=False)
    found = directions[0]
    sign = torch.sign(differences.mean(0) @ found)
    return (found * torch.where(sign == 0, 1.0, sign)).reshape(up.shape[1:]).to(up)
