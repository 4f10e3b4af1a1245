"""Bases of subspaces to interchange, steer or project out, and random ones to compare with.

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
"""A direction shorter than this part of the longest one counts as dependent on the others."""


def random_basis(d: int, k: int, seed: int = 0) -> Tensor:
    """A random subspace: a baseline for subspaces that are claimed to mean something.

    Args:
        d: dimensions of the point.
        k: dimensions of the subspace.
        seed: of the draw.

    Raises:
        InputError: k is not from 1 to d.
    """
    _check_size(k, d)
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator)).Q


def mean_difference_basis(activations: Tensor, labels: Sequence[Hashable] | Tensor) -> Tensor:
    """The subspace in which class means differ; for two classes a direction, towards the later one.

    Args:
        activations: one row for each example.
        labels: the class of each; classes are ordered by their first occurrence.

    Shapes: activations `[example, d]` -> `[d, classes - 1]`

    Raises:
        InputError: there is one class only, the number of labels is not that of rows, or the means
            span fewer dimensions.

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
    rows = [[i for i, own in enumerate(given) if own == label] for label in classes]
    means = torch.stack([activations[index].float().mean(0) for index in rows])
    return _spanned(means, len(classes), "classes").to(activations)


def probe_basis(weights: Tensor) -> Tensor:
    """The directions that a linear probe reads.

    If the probe has standardized inputs, divide its weights by the standard deviations first.

    Args:
        weights: one row for a probe of two classes, or a row for each class; what all rows share is
            not part of the basis.

    Shapes: `[d]` or `[1, d]` -> `[d, 1]`; `[classes, d]` -> `[d, classes - 1]`

    Raises:
        InputError: the rows span fewer dimensions.
    """
    rows = weights.detach().reshape(-1, weights.shape[-1]).float()
    if len(rows) == 1:
        rows = torch.cat([torch.zeros_like(rows), rows])
    return _spanned(rows, len(rows), "rows").to(weights)


def neuron_basis(d: int, neurons: Neurons) -> Tensor:
    """The axes of some neurons: to interchange this subspace is to interchange these neurons.

    Args:
        d: number of neurons of the point.
        neurons: which of them.

    Raises:
        InputError: a neuron is out of range, or named twice.
    """
    chosen = _indices(d, neurons)
    _check_size(len(chosen), d)
    return torch.eye(d)[:, chosen]


def random_neuron_basis(d: int, k: int, seed: int = 0, exclude: Neurons = ()) -> Tensor:
    """The axes of random neurons: a baseline for neurons that are claimed to mean something.

    Args:
        d: number of neurons of the point.
        k: how many are drawn.
        seed: of the draw.
        exclude: neurons that are not drawn.

    Raises:
        InputError: fewer than k neurons can be drawn.
    """
    left_out = set(_indices(d, exclude))
    left = [neuron for neuron in range(d) if neuron not in left_out]
    if not 1 <= k <= len(left):
        raise InputError(f"k is 1 to {len(left)}, the neurons that may be drawn; got {k}.")
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))
    return neuron_basis(d, [left[i] for i in order[:k].tolist()])


def _indices(d: int, neurons: Neurons) -> list[int]:
    given = [int(neuron) for neuron in neurons]
    for neuron in given:
        if not -d <= neuron < d:
            raise InputError(f"neuron {neuron} is out of range; there are {d}.")
    counted = [neuron % d for neuron in given]
    if len(set(counted)) < len(counted):
        raise InputError(f"A neuron is named twice: {given}.")
    return counted


def _check_size(k: int, d: int) -> None:
    if not 1 <= k <= d:
        raise InputError(f"A subspace at a point with {d} dimensions has 1 to {d}, not {k}.")


def _spanned(rows: Tensor, count: int, what: str) -> Tensor:
    """What rows minus their mean span; directions point from the first row towards the last."""
    _, sizes, directions = torch.linalg.svd((rows - rows.mean(0)).double(), full_matrices=False)
    rank = int((sizes > _INDEPENDENT * sizes[0]).sum()) if bool(sizes[0] > 0) else 0
    if count < 2 or rank < count - 1:
        raise InputError(
            f"{count} {what} minus their mean span {rank} dimensions; {max(count - 1, 1)} are "
            "needed. Give at least two that differ."
        )
    basis = directions[:rank].T
    towards = (rows[-1] - rows[0]).double() @ basis
    return basis * torch.where(towards < 0, -1.0, 1.0)
