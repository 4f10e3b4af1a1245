"""Search: the pairs of inputs of a distributed alignment search, to train and to measure on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import orthogonal

from lensbridge.errors import InputError
from lensbridge.gradients.backward import require_autograd
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prompts import Side
from lensbridge.interventions.axis import size_of
from lensbridge.interventions.columns import Positions, normalized, of_examples, per_example
from lensbridge.interventions.interchange import source_of
from lensbridge.interventions.intervention import Indices
from lensbridge.interventions.running import run_edited
from lensbridge.interventions.source import StoredSource
from lensbridge.interventions.subspaces import Exchange, Exchanged, within
from lensbridge.points.names import Name
from lensbridge.tensors.positions import padded, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns, taken


@dataclass(frozen=True)
class Schedule:
    """How a subspace is trained."""

    epochs: int
    lr: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Spot:
    """Where values are interchanged, and where and among which tokens the answer is read."""

    site: Name
    positions: Positions
    source_positions: Positions = None
    heads: Indices = None
    answer_position: int = -1
    answers: Sequence[int] | Tensor | None = None


@dataclass(eq=False)
class Search:
    """Pairs of inputs, the answers that an interchange should give, and where it is made.

    Shapes: base `[pair, pos]`, labels `[pair]` (indices in `answers`, if these are given),
        activations as in a cache.
    """

    model: HookedModel
    base: Tensor
    labels: Tensor
    site: str
    activations: StoredSource
    positions: Any
    source_positions: Any
    heads: Indices
    answer_position: int
    answers_among: Tensor | None
    batch_size: int
    forward: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: HookedModel,
        base: Any,
        source: Any,
        labels: Any,
        spot: Spot,
        batch_size: int,
        forward: dict[str, Any],
    ) -> "Search":
        """The search, with the source's activations.

        Raises:
            InputError: numbers of pairs differ, a label is not among the answers, or a site means
                several points.
        """
        require_autograd()
        given, mask = _ids(model, base)
        there, source_mask = _ids(model, source)
        wanted = torch.as_tensor(labels, device=model.device)
        _check_pairs(given, there, wanted)
        name = _site_named(model, spot.site)
        _check_read(given, wanted, spot.answer_position, model.cfg.d_vocab)
        masked = {} if mask is None else {"attention_mask": mask}
        answers = None if spot.answers is None else torch.as_tensor(spot.answers)
        hidden = {} if source_mask is None else {"attention_mask": source_mask}
        return cls(
            model,
            given,
            wanted if answers is None else _places(wanted, answers),
            name,
            StoredSource.of(source_of(model, there, [name], **hidden), [name]),
            normalized(spot.positions),
            normalized(spot.source_positions),
            spot.heads,
            spot.answer_position,
            answers,
            batch_size,
            {**masked, **forward},
        )

    @property
    def width(self) -> int:
        """Number of dimensions of the site."""
        letter = self.model.engine.sites[self.site].axes.split()[-1]
        return size_of(self.model.native, self.site, letter) or self._whole.shape[-1]

    @property
    def _whole(self) -> Tensor:
        return self.activations[self.site]

    def answers(self, rows: Tensor, by: Exchange) -> Tensor:
        """Logits of the answer after an interchange, for some pairs. Shapes: `[pair, answer]`"""
        mask = self.activations.attention_mask
        swap = Exchanged(
            self.site,
            StoredSource(
                {self.site: self._whole[rows.to(self._whole.device)]},
                None if mask is None else mask[rows.to(mask.device)],
            ),
            _chosen(self.source_positions, rows),
            positions=_chosen(self.positions, rows),
            heads=self.heads,
            by=by,
        )
        options = {name: self._of_rows(value, rows) for name, value in self.forward.items()}
        base = self.base[rows.to(self.base.device)]
        logits = run_edited(self.model, base, [swap], **options)
        found = taken(logits, self._answer_columns(options), -2).float()
        return found if self.answers_among is None else found[:, self.answers_among]

    def _answer_columns(self, options: dict[str, Any]) -> PosSlice | RowColumns:
        """Where the answer is read: a token of each text."""
        decodes = self.model.native.is_encoder_decoder
        mask = options.get("decoder_attention_mask" if decodes else "attention_mask")
        return token_positions(self.answer_position, padded(mask), what="answer_position")

    def _of_rows(self, value: Any, rows: Tensor) -> Any:
        each = isinstance(value, Tensor) and value.ndim and len(value) == len(self.base)
        return value[rows.to(value.device)] if each else value

    @torch.no_grad()
    def accuracy(self, rows: Tensor, by: Exchange) -> float:
        """How often the likeliest token is the label."""
        right = [
            (self.answers(some, by).argmax(-1) == self._labels(self.labels, some)).float()
            for some in rows.split(self.batch_size)
        ]
        return float(torch.cat(right).mean())

    @torch.enable_grad()
    def train(
        self, rows: Tensor, labels: Tensor, dim: int, schedule: Schedule
    ) -> tuple[Tensor, tuple[float, ...]]:
        """A subspace that is trained on some pairs, and the loss of each epoch."""
        rotation = self._rotation(dim, schedule.seed)
        weights = list(rotation.parameters())
        optimizer = torch.optim.Adam(weights, lr=schedule.lr)
        generator = torch.Generator().manual_seed(schedule.seed)
        losses = []
        for _ in range(schedule.epochs):
            order = rows[torch.randperm(len(rows), generator=generator)]
            total = 0.0
            for some in order.split(schedule.batch_size):
                logits = self.answers(some, within(rotation.weight.T))
                loss = cross_entropy(logits, self._labels(labels, some))
                # weights of the model may require gradients too; only the rotation gets them
                for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight.grad = grad
                optimizer.step()
                total += float(loss.detach()) * len(some) / len(rows)
            losses.append(total)
        return rotation.weight.T.detach().clone(), tuple(losses)

    def _labels(self, labels: Tensor, rows: Tensor) -> Tensor:
        return labels[rows.to(labels.device)]

    def _rotation(self, dim: int, seed: int) -> nn.Linear:
        """The first rows of a rotation, drawn at random."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            linear = nn.Linear(self.width, dim, bias=False)
            nn.init.orthogonal_(linear.weight)
            rotation: Any = orthogonal(linear)
        return rotation.to(self._whole.device)


def _ids(model: HookedModel, given: Any) -> tuple[Tensor, Tensor | None]:
    """Ids of an input and its mask, where there is padding.

    Raises:
        InputError: the input has no ids.
    """
    side: Side = "right" if model.native.is_encoder_decoder else "left"
    prepared = model.prepare(given, padding_side=side)
    if prepared.tokens is None:
        raise InputError("A search needs ids, texts, or a mapping with 'input_ids'.")
    return prepared.tokens, prepared.mask


def _check_pairs(base: Tensor, source: Tensor, labels: Tensor) -> None:
    if not len(base) == len(source) == len(labels) or labels.ndim != 1:
        raise InputError(
            f"base, source and labels are [pair, pos], [pair, pos], [pair]; got "
            f"{tuple(base.shape)}, {tuple(source.shape)}, {tuple(labels.shape)}."
        )


def _site_named(model: HookedModel, site: Name) -> str:
    """The one point that a name means, if its values have dimensions.

    Raises:
        InputError: it means several, or the last axis counts something else.
    """
    names = model.vocabulary.select(site)
    if len(names) != 1:
        raise InputError(f"{site!r} means {len(names)} points. A search is at one: name it.")
    axes = model.engine.sites[names[0]].axes
    if axes.split()[-1] in "qks":
        raise InputError(
            f"{names[0]} has axes {axes!r}: its last axis counts no dimensions, so it has no "
            "subspaces."
        )
    return names[0]


def _check_read(ids: Tensor, labels: Tensor, position: int, d_vocab: int | None) -> None:
    """Refuse an answer position that the input lacks, and labels that are no tokens.

    Raises:
        InputError: with the range that is allowed.
    """
    count = ids.shape[1]
    if not -count <= position < count:
        raise InputError(f"answer_position {position} is out of range; there are {count}.")
    if d_vocab is None:
        return
    outside = [label for label in labels.tolist() if not 0 <= label < d_vocab]
    if outside:
        raise InputError(f"Labels are tokens, 0 to {d_vocab - 1}; got {outside[0]}.")


def _places(labels: Tensor, answers: Tensor) -> Tensor:
    """The indices of labels in the answers.

    Raises:
        InputError: a label is not among the answers.
    """
    same = labels[:, None] == answers.to(labels.device)
    if not bool(same.any(-1).all()):
        lacking = labels[~same.any(-1)].unique().tolist()
        raise InputError(f"Labels {lacking} are not among the answers {answers.tolist()}.")
    return same.int().argmax(-1)


def _chosen(positions: Any, rows: Tensor) -> Any:
    """Positions of some pairs."""
    if not per_example(positions) or len(positions) == 1:
        return positions
    return of_examples(positions, rows.tolist())
