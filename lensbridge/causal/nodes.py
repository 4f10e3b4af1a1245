"""Node attribution: the change of every part's value times the metric's gradient by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.causal.pair import Gradient, Pair
from lensbridge.causal.path import Method, reads_of, steps_of
from lensbridge.causal.saturation import PATTERN, SCORES, WRITTEN, Repeated
from lensbridge.parts import StackPart
from lensbridge.patching.units import UNITS, points_of
from lensbridge.patching.unpatched import Base

Places: TypeAlias = dict[str, dict[int | None, str]]
"""Unit -> layer -> point."""


@dataclass(frozen=True)
class NodeScores:
    """Scores of some units.

    Args:
        pair: the two inputs.
        stack: whose nodes.
        units: which kinds.
        positions: whether each position counts as a node of its own.
        attention_fix: whether softmax is computed again for queries and keys.
    """

    pair: Pair
    stack: StackPart
    units: Sequence[str]
    positions: bool
    attention_fix: bool

    def points(self) -> Places:
        """Unit -> layer -> point."""
        return {unit: points_of(self.pair.model, self.stack, unit) for unit in self.units}

    def fixed(self, unit: str) -> bool:
        """Whether a unit's effect goes through softmax and is followed there."""
        return self.attention_fix and unit in ("q", "k")

    def run(self, method: Method, steps: int) -> tuple[dict[str, Tensor], Base, Gradient]:
        """The scores, the run that values come from, and the pass at the base run."""
        places = self.points()
        points = [point for layers in places.values() for point in layers.values()]
        other = self.pair.run_other([*points, *reads_of(self.pair, method)])
        sums: dict[tuple[str, int | None], Any] = {}
        base: Gradient | None = None
        repeated: dict[str, Repeated] = {}
        for step in steps_of(self.pair, method, steps, points, other):
            grad = self.pair.differentiate(
                [*step.scored, *self._behind(places, PATTERN)],
                self._behind(places, SCORES, WRITTEN) if base is None else (),
                edits=step.edits,
            )
            if base is None:
                base, repeated = grad, self._repeated(places, grad, other)
            for unit, layers in places.items():
                for layer, point in layers.items():
                    if point not in step.scored:
                        continue
                    if unit in repeated:
                        part = self._through_softmax(repeated[unit], layer, grad)
                    else:
                        delta = other.cache[point] - base.cache[point]
                        part = _product(unit, delta, grad.grads[point])
                    sums[unit, layer] = sums.get((unit, layer), 0.0) + part * step.weight
        assert base is not None
        return self._assembled(places, sums), other, base

    def _behind(self, places: Places, *points: str) -> list[str]:
        """Points of the layers whose queries or keys are followed through softmax."""
        layers = dict.fromkeys(i for unit in places if self.fixed(unit) for i in places[unit])
        return [f"{self.stack.prefix}.{i}.{point}" for i in layers for point in points]

    def _repeated(self, places: Places, base: Gradient, other: Base) -> dict[str, Repeated]:
        found = {}
        for unit in filter(self.fixed, places):
            at = {f"{self.stack.prefix}.{i}.": point for i, point in places[unit].items()}
            found[unit] = Repeated.run(self.pair, unit, at, self.positions, base.cache, other)
        return found

    def _through_softmax(self, repeated: Repeated, layer: int | None, grad: Gradient) -> Tensor:
        assert layer is not None
        attn = self.stack.blocks[layer].attn
        assert attn is not None
        at = f"{self.stack.prefix}.{layer}."
        count = attn.n_heads if repeated.unit == "q" else attn.n_kv
        return repeated.score(at, count, grad.grads[f"{at}{PATTERN}"])

    def _assembled(
        self, places: Places, sums: Mapping[tuple[str, int | None], Tensor]
    ) -> dict[str, Tensor]:
        return {
            unit: self._stacked(unit, {i: sums[unit, i] for i in layers})
            for unit, layers in places.items()
        }

    def _stacked(self, unit: str, layers: dict[int | None, Tensor]) -> Tensor:
        """Shapes: `[layer?, index?, pos?, batch?]`"""
        rows = {i: self._reduced(one) for i, one in layers.items()}
        if unit == "input":
            return rows[None]
        return _padded(rows, len(self.stack.blocks))

    def _reduced(self, one: Tensor) -> Tensor:
        """Shapes: `[batch, pos, index?]` -> `[index?, pos?, batch?]`"""
        one = one.movedim((0, 1), (-1, -2))
        one = one if self.positions else one.sum(-2)
        return by_example(one, self.pair)

    def axis_names(self, unit: str) -> tuple[str, ...]:
        """Of a unit's tensor."""
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
    """The axes that every tensor of scores ends with."""
    kept = ("example",) if pair.metrics.reduce == "none" else ()
    return (*(("position",) if positions else ()), *kept)


def by_example(scores: Tensor, pair: Pair) -> Tensor:
    """Scores with examples last, as the metric has them: summed, averaged or kept."""
    reduce = pair.metrics.reduce
    if reduce == "none":
        return scores
    return scores.mean(-1) if reduce == "mean" else scores.sum(-1)


def _padded(rows: dict[int | None, Tensor], count: int) -> Tensor:
    """Layers on one axis, NaN where a layer has none or fewer."""
    shape = [max(sizes) for sizes in zip(*(one.shape for one in rows.values()), strict=True)]
    like = next(iter(rows.values()))
    table = like.new_full((count, *shape), torch.nan)
    for i, one in rows.items():
        assert i is not None
        place = tuple(slice(n) for n in one.shape)
        table[i][place] = one
    return table
