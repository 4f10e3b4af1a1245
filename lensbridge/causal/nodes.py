"""Node attribution: the difference in each node's value, times the metric's gradient at it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.causal.differentiable_pass import Gradient
from lensbridge.causal.gradient_gates import GradientGates
from lensbridge.causal.pair import Pair
from lensbridge.causal.path import Method, reads_of, steps_of
from lensbridge.causal.saturation import PATTERN, SCORES, WRITTEN, Repeated
from lensbridge.native.parts import StackPart
from lensbridge.nodes.units import UNITS, points_of
from lensbridge.sweeps.base_run import BaseRun

Places: TypeAlias = dict[str, dict[int | None, str]]
"""Unit -> layer -> point."""


OUTSIDE = ("input", "stream")
"""Kinds of nodes that no branch of a layer writes."""


@dataclass
class Sums:
    """Scores so far, for each metric, unit and layer, by the layer that gradients left out."""

    terms: dict[tuple[str, str, int | None], dict[str | None, Tensor]] = field(default_factory=dict)

    def add(self, place: tuple[str, str, int | None], closed: str | None, part: Tensor) -> None:
        """Add the part that one backward pass gave."""
        row = self.terms.setdefault(place, {})
        row[closed] = row[closed] + part if closed in row else part


@dataclass(frozen=True)
class NodeScores:
    """Scores of some units.

    Args:
        pair: the two inputs.
        stack: whose nodes.
        units: which kinds.
        positions: whether each position counts as a node.
        attention_fix: whether softmax is computed again for queries and keys.
        grad_drop: whether scores are magnitudes, averaged over gradients that leave out one layer
            each.
    """

    pair: Pair
    stack: StackPart
    units: Sequence[str]
    positions: bool = False
    attention_fix: bool = False
    grad_drop: bool = False

    @cached_property
    def places(self) -> Places:
        """Unit -> layer -> point."""
        return {unit: points_of(self.pair.model, self.stack, unit) for unit in self.units}

    def fixed(self, unit: str) -> bool:
        """Whether softmax is computed again for a unit (queries or keys)."""
        return self.attention_fix and unit in ("q", "k")

    def run(self, method: Method, steps: int) -> tuple[list[dict[str, Tensor]], BaseRun, Tensor]:
        """The scores for each metric, the other run, and the base run's logits."""
        points = [point for layers in self.places.values() for point in layers.values()]
        gates = GradientGates.of(self.pair.model) if self.grad_drop else None
        other = self.pair.run_other([*points, *reads_of(self.pair, method)])
        sums = Sums()
        base: tuple[ActivationCache, Tensor] | None = None
        repeated: dict[str, Repeated] = {}
        for step in steps_of(self.pair, method, steps, points, other):
            at = [*step.scored, *self._behind(PATTERN)]
            reads = self._behind(SCORES, WRITTEN) if base is None else ()
            tape = self.pair.run_base(at, reads, edits=step.edits, gates=gates)
            if base is None:
                base, repeated = (
                    (tape.cache, tape.logits.detach()),
                    self._repeated(tape.cache, other),
                )
            deltas = {point: other.cache[point] - base[0][point] for point in step.scored}
            for grad in tape.back(self.pair.metrics.functions, drop=self.grad_drop):
                for unit, layer, part in self._parts(deltas, repeated, grad):
                    sums.add((grad.metric, unit, layer), grad.closed, part * step.weight)
        assert base is not None
        return [self._assembled(sums, name) for name in self.pair.metrics.names], other, base[1]

    def _parts(
        self, deltas: Mapping[str, Tensor], repeated: Mapping[str, Repeated], grad: Gradient
    ) -> Iterator[tuple[str, int | None, Tensor]]:
        """The parts of the scores that one backward pass gives, for each unit and layer."""
        for unit, layers in self.places.items():
            for layer, point in layers.items():
                if point not in deltas:
                    continue
                if unit in repeated:
                    yield unit, layer, self._through_softmax(repeated[unit], layer, grad)
                else:
                    yield unit, layer, _product(unit, deltas[point], grad.grads[point])

    def _behind(self, *points: str) -> list[str]:
        """Points of the layers for which softmax is computed again."""
        layers = dict.fromkeys(i for u in self.places if self.fixed(u) for i in self.places[u])
        return [f"{self.stack.prefix}.{i}.{point}" for i in layers for point in points]

    def _repeated(self, base: ActivationCache, other: BaseRun) -> dict[str, Repeated]:
        found = {}
        for unit in filter(self.fixed, self.places):
            at = {f"{self.stack.prefix}.{i}.": point for i, point in self.places[unit].items()}
            found[unit] = Repeated.run(self.pair, unit, at, self.positions, base, other)
        return found

    def _through_softmax(self, repeated: Repeated, layer: int | None, grad: Gradient) -> Tensor:
        assert layer is not None
        attn = self.stack.blocks[layer].attn
        assert attn is not None
        at = f"{self.stack.prefix}.{layer}."
        count = attn.n_heads if repeated.unit == "q" else attn.n_kv
        return repeated.score(at, count, grad.grads[f"{at}{PATTERN}"])

    def _assembled(self, sums: Sums, metric: str) -> dict[str, Tensor]:
        return {
            unit: self._stacked(
                unit, {i: self._scored(sums, metric, unit, i) for i in self.places[unit]}
            )
            for unit in self.places
        }

    def _scored(self, sums: Sums, metric: str, unit: str, layer: int | None) -> Tensor:
        """Shapes: `[index?, pos?, example?]`"""
        terms = {k: self._placed(v) for k, v in sums.terms[metric, unit, layer].items()}
        if not self.grad_drop:
            return by_example(terms[None], self.pair)
        own = f"{self.stack.prefix}.{layer}." if UNITS[unit].kind not in OUTSIDE else None
        return dropped(terms, own, self.pair)

    def _stacked(self, unit: str, rows: Mapping[int | None, Tensor]) -> Tensor:
        """Shapes: `[layer?, index?, pos?, example?]`"""
        return rows[None] if unit == "input" else _padded(rows, len(self.stack.blocks))

    def _placed(self, one: Tensor) -> Tensor:
        """Shapes: `[batch, pos, index?]` -> `[index?, pos?, batch]`"""
        one = one.movedim((0, 1), (-1, -2))
        return one if self.positions else one.sum(-2)

    def axis_names(self, unit: str) -> tuple[str, ...]:
        """The axes of a unit's tensor."""
        index = UNITS[unit].index
        names = [] if unit == "input" else ["layer"]
        names += [] if index is None else [index]
        return (*names, *tail_names(self.pair, self.positions))


def _product(unit: str, delta: Tensor, grad: Tensor) -> Tensor:
    """Shapes: an activation's -> `[batch, pos, index?]`"""
    wide = torch.promote_types(delta.dtype, torch.float32)
    product = delta.to(wide) * grad.to(wide)
    return product if unit == "neuron" else product.sum(-1)


def tail_names(pair: Pair, positions: bool) -> tuple[str, ...]:
    """The last axes of every tensor of scores."""
    kept = ("example",) if pair.metrics.reduce == "none" else ()
    return (*(("position",) if positions else ()), *kept)


def by_example(scores: Tensor, pair: Pair) -> Tensor:
    """Scores `[*, batch]`, with examples summed, averaged or kept as the metric does."""
    reduce = pair.metrics.reduce
    if reduce == "none":
        return scores
    return scores.mean(-1) if reduce == "mean" else scores.sum(-1)


def dropped(terms: Mapping[str | None, Tensor], own: str | None, pair: Pair) -> Tensor:
    """Mean magnitude over the gradients that leave out one layer, except the node's own layer.

    Shapes: `[*, batch]` each -> `[*, example?]`
    """
    others = torch.stack([one for closed, one in terms.items() if closed != own])
    if pair.metrics.reduce == "scalar":
        return by_example(others, pair).abs().mean(0)
    return by_example(others.abs().mean(0), pair)


def _padded(rows: Mapping[int | None, Tensor], count: int) -> Tensor:
    """The layers on one axis, with NaN where a layer has no or fewer nodes."""
    shape = [max(sizes) for sizes in zip(*(one.shape for one in rows.values()), strict=True)]
    like = next(iter(rows.values()))
    table = like.new_full((count, *shape), torch.nan)
    for i, one in rows.items():
        assert i is not None
        place = tuple(slice(n) for n in one.shape)
        table[i][place] = one
    return table
