"""Bases: subspaces to interchange, steer or project out, and the random ones to compare them with.

Shapes: each basis is `[d, k]` with orthonormal columns, as `subspace=` takes it.
"""

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError

Neurons: TypeAlias = Sequence[int] | Tensor
"""Indices of neurons."""

_INDEPENDENT = 1e-6
"""A direction shorter than this part of the longest one is made of the others."""


def random_basis(d: int, k: int, seed: int = 0) -> Tensor:
    """A random subspace: what a subspace that means something should beat.

    Args:
        d: dimensions of the point.
        k: of the subspace.
        seed: of the draw.

    Raises:
        InputError: more dimensions than there are.
    """
    _check_size(k, d)
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator)).Q


def mean_difference_basis(activations: Tensor, labels: Sequence[Hashable] | Tensor) -> Tensor:
    """What the means of classes differ in; of two classes one direction, towards the later label.

    Args:
        activations: one row for each example.
        labels: the class of each, in the order of first occurrence.

    Shapes: activations `[example, d]` -> `[d, classes - 1]`

    Raises:
        InputError: one class alone, as many labels as rows there are not, or means that do not
            span as many dimensions.

    Example:
        >>> mean_difference_basis(torch.tensor([[1.0, 0.0], [4.0, 0.0]]), ["a", "b"])
        tensor([[1.],
                [0.]])
    """
    given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if activations.ndim != 2 or len(given) != len(activations):
        raise InputError(
            f"Activations are [example, d] with a label for each; got shape "
            f"{tuple(activations.shape)} and {len(given)} labels."
        )
    classes = list(dict.fromkeys(given))
    rows = [[i for i, one in enumerate(given) if one == label] for label in classes]
    means = torch.stack([activations[index].float().mean(0) for index in rows])
    return _spanned(means, len(classes), "classes").to(activations)


def probe_basis(weights: Tensor) -> Tensor:
    """The directions that a linear probe reads.

    Weights of a probe of standardized inputs are divided by the standard deviations first.

    Args:
        weights: one row for a probe of two classes, or a row for each class, of which what all
            rows share is no part.

    Shapes: `[d]` or `[1, d]` -> `[d, 1]`; `[classes, d]` -> `[d, classes - 1]`

    Raises:
        InputError: rows that do not span as many dimensions.
    """
    rows = weights.detach().reshape(-1, weights.shape[-1]).float()
    if len(rows) == 1:
        rows = torch.cat([torch.zeros_like(rows), rows])
    return _spanned(rows, len(rows), "rows").to(weights)


def neuron_basis(d: int, neurons: Neurons) -> Tensor:
    """The axes of some neurons: interchanging it is interchanging these neurons.

    Args:
        d: how many neurons there are.
        neurons: which.

    Raises:
        InputError: a neuron that is not there, or there twice.
    """
    chosen = _indices(d, neurons)
    _check_size(len(chosen), d)
    return torch.eye(d)[:, chosen]


def random_neuron_basis(d: int, k: int, seed: int = 0, exclude: Neurons = ()) -> Tensor:
    """The axes of random neurons: what a set of neurons that means something should beat.

    Args:
        d: how many neurons there are.
        k: how many are drawn.
        seed: of the draw.
        exclude: neurons that are left out.

    Raises:
        InputError: fewer are left than are to be drawn.
    """
    left_out = set(_indices(d, exclude))
    left = [one for one in range(d) if one not in left_out]
    if not 1 <= k <= len(left):
        raise InputError(f"k is 1 to {len(left)}, the neurons that may be drawn; got {k}.")
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
    return neuron_basis(d, [left[i] for i in order[:k].tolist()])


def _indices(d: int, neurons: Neurons) -> list[int]:
    given = [int(one) for one in neurons]
    for one in given:
        if not -d <= one < d:
            raise InputError(f"neuron {one} is out of range; there are {d}.")
    found = [one % d for one in given]
    if len(set(found)) < len(found):
        raise InputError(f"A neuron is named twice: {given}.")
    return found


def _check_size(k: int, d: int) -> None:
    if not 1 <= k <= d:
        raise InputError(f"A subspace of {d} dimensions has 1 to {d} of them, not {k}.")


def _spanned(rows: Tensor, count: int, what: str) -> Tensor:
    """What rows span beside their mean; the first direction points from the first to the last."""
    _, sizes, directions = torch.linalg.svd((rows - rows.mean(0)).double(), full_matrices=False)
    rank = int((sizes > _INDEPENDENT * sizes[0]).sum()) if bool(sizes[0] > 0) else 0
    if count < 2 or rank < count - 1:
        raise InputError(
            f"{count} {what} span {rank} dimensions beside their mean; {max(count - 1, 1)} are "
            "needed. Give at least two, different ones."
        )
    found = directions[:rank].T
    towards = (rows[-1] - rows[0]).double() @ found
    return found * torch.where(towards < 0, -1.0, 1.0)
