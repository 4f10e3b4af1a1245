"""Distributed alignment search: learn the subspace in which a model represents a variable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.interventions.columns import Positions
from lensbridge.interventions.exchange import Swap
from lensbridge.interventions.intervention import Indices
from lensbridge.interventions.search import Schedule, Search, Spot
from lensbridge.interventions.subspaces import as_far, within
from lensbridge.points.names import Name
from lensbridge.viz import Bars, Drawn

CONTROLS = {
    "none": "nothing interchanged",
    "whole": "whole vector",
    "random": "random subspaces",
    "norm_matched": "random direction, as far",
    "shuffled": "trained on shuffled labels",
}
"""What the controls of `fit_das` are, for pictures."""


@dataclass(frozen=True, eq=False)
class DASResult(Drawn):
    """A learned subspace, and how often interchanging it gives the wanted answer.

    Args:
        site: canonical name of the point.
        subspace: `[d, k]`, orthonormal columns.
        losses: cross-entropy of each epoch, the mean of its batches.
        train_accuracy: on the pairs that it was trained with.
        accuracy: on the pairs held out.
        controls: accuracy of the controls on the same pairs: see `fit_das`.
        held_out: which pairs were held out.
        positions: where in the base.
        source_positions: where in the source.
        heads: which heads.

    Units: `losses` in nats; accuracies are fractions of pairs whose likeliest token is the label.
    """

    site: str
    subspace: Tensor
    losses: tuple[float, ...]
    train_accuracy: float
    accuracy: float
    controls: Mapping[str, float]
    held_out: tuple[int, ...]
    positions: Positions
    source_positions: Positions
    heads: Indices = None

    def plot(self, *, title: str = "") -> Bars:
        """Bars of the accuracy on pairs held out, and of each control."""
        learned = {"learned subspace": self.accuracy}
        rows = {**learned, **{CONTROLS.get(k, k): v for k, v in self.controls.items()}}
        rows = {name: value for name, value in rows.items() if value == value}  # no NaN
        dims, width = self.subspace.shape[1], self.subspace.shape[0]
        title = title or f"{self.site}: {dims} of {width} dimensions interchanged"
        return Bars(title, list(rows.values()), list(rows), "accuracy on pairs held out")

    def swap(self, source: ActivationCache) -> Swap:
        """The intervention that interchanges the subspace with activations of a source."""
        return Swap(
            self.site,
            source,
            self.source_positions,
            positions=self.positions,
            heads=self.heads,
            subspace=self.subspace,
        )

    def __repr__(self) -> str:
        controls = ", ".join(f"{name} {value:.2f}" for name, value in self.controls.items())
        return (
            f"DASResult({self.site}, {self.subspace.shape[1]} of {self.subspace.shape[0]} "
            f"dimensions, accuracy {self.accuracy:.2f}; {controls})"
        )


def fit_das(
    model: HookedModel,
    base: Any,
    source: Any,
    labels: Tensor | Sequence[int],
    site: Name,
    positions: Positions,
    dim: int,
    *,
    source_positions: Positions = None,
    answer_position: int = -1,
    answers: Sequence[int] | Tensor | None = None,
    heads: Indices = None,
    epochs: int = 20,
    lr: float = 0.01,
    batch_size: int = 32,
    held_out: float = 0.25,
    n_random: int = 5,
    seed: int = 0,
    **forward: Any,
) -> DASResult:
    """Learn a subspace whose interchange makes the model answer with the labels.

    A rotation of the site's dimensions is trained with Adam, and its first `dim` directions are
    interchanged. The model's weights do not change and get no gradients.

    Args:
        model: the model.
        base: inputs of the runs that are edited: ids, texts, or a mapping with a mask. Texts are
            padded on the left.
        source: as many inputs, of the runs that the subspace's values are taken from.
        labels: for each pair, the token that should follow after the interchange.
        site: one point.
        positions: where in the base; a list for each pair, or for all.
        dim: dimensions of the subspace.
        source_positions: where in the source; None: at the same positions.
        answer_position: where the answer is read, in each text.
        answers: the tokens that an answer may be, which include the labels; None: all.
        heads: which heads of a point that has them; the same subspace is interchanged in all.
        epochs: how often each pair is trained on.
        lr: the learning rate.
        batch_size: pairs in a batch.
        held_out: the fraction of the pairs that accuracies are measured on.
        n_random: how many random subspaces the control "random" averages.
        seed: of the split, the order, the start and the controls.
        forward: other arguments of `forward`, for base runs.

    Returns:
        The subspace, with these controls on the same pairs: "none" (nothing is interchanged),
        "whole" (the whole vector), "random" (random subspaces of the same size), "norm_matched"
        (the base is moved in a random direction, as far as the subspace moves it), "shuffled" (a
        subspace that was trained in the same way on shuffled labels).

    Shapes: base `[pair, pos]`, source `[pair, pos']`, labels `[pair]`.

    Raises:
        InputError: numbers of pairs differ, or a site or dimension does not fit.

    Source: distributed alignment search as in Geiger et al. 2023.
    """
    if epochs < 1 or batch_size < 1:
        raise InputError(f"epochs and batch_size are at least 1, not {epochs} and {batch_size}.")
    spot = Spot(site, positions, source_positions, heads, answer_position, answers)
    search = Search.of(model, base, source, labels, spot, batch_size, forward)
    if not 1 <= dim <= search.width:
        raise InputError(f"dim is 1 to {search.width}, the dimensions of {search.site}; got {dim}.")
    return _learned(search, dim, Schedule(epochs, lr, batch_size, seed), held_out, n_random)


def _learned(
    search: Search, dim: int, schedule: Schedule, held_out: float, n_random: int
) -> DASResult:
    generator = torch.Generator().manual_seed(schedule.seed)
    train, held = _split(len(search.labels), held_out, generator)
    basis, losses = search.train(train, search.labels, dim, schedule)
    placebo, _ = search.train(train, _shuffled(search.labels, train, generator), dim, schedule)
    random = [_random_basis(basis, generator) for _ in range(n_random)]
    return DASResult(
        site=search.site,
        subspace=basis,
        losses=losses,
        train_accuracy=search.accuracy(train, within(basis)),
        accuracy=search.accuracy(held, within(basis)),
        controls={
            "none": search.accuracy(held, lambda here, there: here),
            "whole": search.accuracy(held, lambda here, there: there),
            "random": _mean([search.accuracy(held, within(basis)) for basis in random]),
            "norm_matched": search.accuracy(held, as_far(basis, generator)),
            "shuffled": search.accuracy(held, within(placebo)),
        },
        held_out=tuple(held.tolist()),
        positions=search.positions,
        source_positions=search.source_positions,
        heads=search.heads,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _shuffled(labels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Labels of which some rows are shuffled among each other."""
    order = rows[torch.randperm(len(rows), generator=generator)].to(labels.device)
    return labels.index_copy(0, rows.to(labels.device), labels[order])


def _random_basis(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(like.shape, generator=generator)).Q.to(like)


def _split(n: int, held_out: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs to train on, and pairs held out."""
    order = torch.randperm(n, generator=generator)
    count = max(1, round(held_out * n))
    if not 0 < held_out < 1 or count >= n:
        raise InputError(
            f"held_out={held_out} of {n} pairs leaves none to train on, or none to measure on. It "
            "is between 0 and 1."
        )
    return order[count:], order[:count].sort().values
