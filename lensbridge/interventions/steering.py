"""Steering vectors: directions from pairs of contrasting texts."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from lensbridge.analysis.probes.solvers import fit_logistic
from lensbridge.errors import InputError, UnknownPointError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.special import Excluded
from lensbridge.interventions.kinds import Steer
from lensbridge.interventions.steering_examples import ReadAt, activations_of
from lensbridge.interventions.steering_vectors import SteeringVectors
from lensbridge.points.point_names import NamesFilter

Method = Literal["mean_difference", "pca", "logistic"]
"""mean_difference: the mean of the positive examples less that of the negative ones. pca: the first
principal direction of the differences of pairs. logistic: the weights of a logistic regression that
tells positive examples from negative ones."""

_METHODS = ("mean_difference", "pca", "logistic")


@overload
def steering_vector(
    model: HookedModel,
    positive: Any,
    negative: Any,
    site: tuple[str, int],
    position: ReadAt = ...,
    method: Method = ...,
    exclude_special_tokens: Excluded = ...,
    batch_size: int | None = ...,
    **input_options: Any,
) -> Steer: ...
@overload
def steering_vector(
    model: HookedModel,
    positive: Any,
    negative: Any,
    site: NamesFilter,
    position: ReadAt = ...,
    method: Method = ...,
    exclude_special_tokens: Excluded = ...,
    batch_size: int | None = ...,
    **input_options: Any,
) -> Any: ...
def steering_vector(
    model: HookedModel,
    positive: Any,
    negative: Any,
    site: NamesFilter,
    position: ReadAt = -1,
    method: Method = "mean_difference",
    exclude_special_tokens: Excluded = True,
    batch_size: int | None = None,
    **input_options: Any,
) -> Any:
    """A steering vector: the direction from examples without a property to examples that have it.

    Args:
        model: the model.
        positive: texts or ids with the property.
        negative: texts or ids without it.
        site: where activations are read, and where the result steers. A point of one layer gives
            one vector; "resid_post", or a list or glob of points, gives one for each of them, from
            the same run.
        position: which token of each example, without padding: -1 or "last" is the last one; of
            several ([-1, -2]) the mean is taken, and "mean" takes that of all; lists of lists are
            those of each example. A function gets each text (or its ids) and gives the positions.
        method: "mean_difference": the mean of the positive activations minus that of the negative
            ones, not normalized. "pca": the first principal direction of the differences of pairs
            (as many examples on both sides), not centred, of length one, pointing from negative to
            positive. "logistic": the weights of a logistic regression with an intercept and
            `C = 1` in scikit-learn's terms, of length one.
        exclude_special_tokens: leave BOS, EOS, padding and separators out of a mean of all; or the
            ids of the tokens that are left out.
        batch_size: how many texts of a side are run at once; None: all of them.
        input_options: `prepend_bos` and other options of `run_with_cache`.

    Returns:
        A `Steer` with strength 1 at every position, or `SteeringVectors` with one for each point;
        `.at(strength=4.0, positions="last")` changes that for either.

    Shapes: a vector has the axes of the point after its positions: `[d_model]`, or
        `[head, d_head]`.

    Raises:
        InputError: an example lacks the position or has only special tokens, or "pca" has unequal
            numbers of examples.
        UnknownPointError: no point has the name.

    Source: mean differences as in Turner et al. 2023 and Rimsky et al. 2023; principal directions
        of differences as in Zou et al. 2023.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> towers = ["The Eiffel Tower"], ["The Galata Tower"]
        >>> steer = steering_vector(model, *towers, ("mlp_out", 1))
        >>> steer.vector.shape
        torch.Size([128])
        >>> steering_vector(model, *towers, "resid_post", position=[-1, -2])
        SteeringVectors(4 of resid_post, layers 0 to 3)
    """
    if method not in _METHODS:
        raise InputError(f"method is {', '.join(map(repr, _METHODS))}, not {method!r}.")
    names = model.vocabulary.select(site)
    up, down = (
        activations_of(
            model, given, names, position, exclude_special_tokens, batch_size, **input_options
        )
        for given in (positive, negative)
    )
    found = tuple(Steer(name, _direction(up[name], down[name], method)) for name in names)
    if _is_of_one(model, site):
        return found[0]
    return SteeringVectors(found, str(model.native.main.config.to_dict().get("model_type", "")))


def _is_of_one(model: HookedModel, site: NamesFilter) -> bool:
    """Whether a site is spelled as one point, not as those of all layers."""
    if not isinstance(site, str | tuple) or not all(isinstance(one, str | int) for one in site):
        return False
    try:
        model.vocabulary.canonical(site)
    except UnknownPointError:
        return False
    return True


def _direction(up: Tensor, down: Tensor, method: Method) -> Tensor:
    """Shapes: `[example, ...]` of both sides -> `[...]`"""
    if method == "mean_difference":
        return up.mean(0) - down.mean(0)
    return (_principal if method == "pca" else _separating)(up, down)


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


def _separating(up: Tensor, down: Tensor) -> Tensor:
    """The normal of the plane that a logistic regression puts between the sides."""
    examples = torch.cat([up, down]).flatten(1)
    sides = torch.tensor([1] * len(up) + [0] * len(down), device=examples.device)
    with torch.inference_mode(False), torch.no_grad():
        weight = fit_logistic(examples.clone(), sides, 2, penalty=1.0, scaled=False).weight[0]
    if not bool(weight.any()):
        raise InputError("The positive and negative activations are the same: nothing separates.")
    return (weight / weight.norm()).reshape(up.shape[1:]).to(up)
