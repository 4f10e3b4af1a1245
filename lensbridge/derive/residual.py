"""How a layer's output is computed from its input: the sums, found by comparing values.

The stream goes through states; every value that a module reads may be one. A step from one state to
the next adds the output of a module (or of two) times a factor, or is a norm. A path of such steps
from the layer's input to its output shows how the branches are added to the stream. A factor is a
number, or parameters of the block; the stream before a step can have one as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, Value, unit
from lensbridge.derive.multiples import ONE, Multiple, Multiples
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.trace import TracedCall

_MAX_STEPS = 8


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the stream: something is added to it, or it goes through a norm.

    Args:
        source: the state before, `target` the state after.
        added: the values that are added, with their factors.
        norm: the norm that it goes through instead.
        skip: the factor of the state before.
        out_scale: the parameter or buffer that multiplies the whole sum.
    """

    source: Value
    target: Value
    added: tuple[tuple[Multiple, Value], ...] = ()
    norm: TracedCall | None = None
    skip: Multiple = ONE
    out_scale: str | None = None


class Residual:
    """The search for a layer's steps."""

    def __init__(self, layer: Layer, fields: Fields) -> None:
        self.layer = layer
        self.multiples = Multiples(layer, fields)
        self.tolerance = layer.trace.tolerance
        self.states = [v for v in layer.values if v.consumers or v in (layer.x, layer.y)]
        self.given = [v for v in layer.values if v.producers and v.size > 0 and v is not layer.y]
        if self.given:
            self.matrix = torch.stack([v.flat for v in self.given])
            self.gram = self.matrix @ self.matrix.T

    def steps(self) -> list[Step] | None:
        """The steps from the layer's input to its output; None if there is no such path.

        Paths whose steps add one value each are preferred, then those that add several at once,
        then those whose whole sum is multiplied, then those whose stream is multiplied before.
        """
        if not self.given:
            return None
        for kinds in (1, 2, 3, 4):
            path = self._best(kinds)
            if path is not None:
                return path
        return None

    def _best(self, kinds: int) -> list[Step] | None:
        edges = {id(state): list(self._edges(state, kinds)) for state in self.states}
        paths = list(self._paths(self.layer.x, edges, 0))
        return max(paths, key=_worth, default=None)

    def _paths(self, here: Value, edges: dict[int, list[Step]], depth: int) -> Iterator[list[Step]]:
        if here is self.layer.y:
            yield []
            return
        if depth == _MAX_STEPS:
            return
        for step in edges.get(id(here), ()):
            for rest in self._paths(step.target, edges, depth + 1):
                yield [step, *rest]

    def _edges(self, here: Value, kinds: int) -> Iterator[Step]:
        yield from self._norms(here)
        for target in self.states:
            if target is here or target.time <= here.time or target is self.layer.x:
                continue
            step = self._sum(here, target, kinds)
            if step is not None:
                yield step

    def _norms(self, here: Value) -> Iterator[Step]:
        for call in here.consumers:
            target = self.layer.value(call.output)
            leaf = self.layer.is_leaf(call)
            if leaf and target is not None and target is not here and looks_like_norm(call):
                yield Step(here, target, norm=call)

    def _sum(self, here: Value, target: Value, kinds: int) -> Step | None:
        difference = target.flat - here.flat
        if difference.norm() <= 1e-3 * self.tolerance**0.5 * target.size:
            return None
        usable = self._usable(here, target)
        found = self._one(difference, usable, target.size + here.size)
        if found is None and kinds >= 2:
            found = self._two(difference, usable, target.size + here.size)
        if found is not None:
            number = self.multiples.of_number
            return Step(here, target, tuple((number(c), self.given[i]) for c, i in found))
        step = None
        if kinds >= 3 and target is self.layer.y:
            step = self._multiplied(here, target, usable)
        if step is None and kinds >= 4:
            step = self._by_channel(here, target, usable)
        return step

    def _usable(self, here: Value, target: Value) -> Tensor:
        """Which values can be added between two states: those that appeared between them."""
        return torch.tensor(
            [here.time < value.time < target.time and value is not target for value in self.given]
        )

    def _one(
        self, difference: Tensor, usable: Tensor, size: float
    ) -> tuple[tuple[float, int], ...] | None:
        products, diagonal = self.matrix @ difference, self.gram.diagonal()
        explained = products**2 / diagonal
        explained[~usable] = -1.0
        i = int(explained.argmax())
        factor = float(products[i] / diagonal[i])
        left = (difference - factor * self.matrix[i]).norm()
        return ((factor, i),) if usable[i] and left <= self.tolerance * size else None

    def _two(
        self, difference: Tensor, usable: Tensor, size: float
    ) -> tuple[tuple[float, int], ...] | None:
        products = self.matrix @ difference
        diagonal = self.gram.diagonal()
        determinant = diagonal[:, None] * diagonal[None, :] - self.gram**2
        first = products[:, None] * diagonal[None, :] - self.gram * products[None, :]
        a = first / determinant.clamp_min(1e-300)
        explained = a * products[:, None] + a.T * products[None, :]
        wrong = ~(usable[:, None] & usable[None, :])
        wrong |= determinant < 1e-6 * diagonal[:, None] * diagonal[None, :]
        explained[wrong] = -float("inf")
        best = int(explained.argmax())
        i, j = divmod(best, len(self.given))
        left = difference - a[i, j] * self.matrix[i] - a[j, i] * self.matrix[j]
        if wrong[i, j] or left.norm() > self.tolerance * size:
            return None
        return tuple(sorted([(float(a[i, j]), i), (float(a[j, i]), j)], key=lambda one: one[1]))

    def _multiplied(self, here: Value, target: Value, usable: Tensor) -> Step | None:
        """A step `target = c * (here + value)` with one number c that the block holds."""
        for i in usable.nonzero().flatten().tolist():
            pair = torch.stack([here.flat, self.given[i].flat], dim=1)
            c, d = torch.linalg.lstsq(pair, target.flat[:, None]).solution.flatten().tolist()
            left = target.flat - pair @ torch.tensor([c, d], dtype=pair.dtype)
            if left.norm() <= self.tolerance * target.size and c and unit(d / c, self.tolerance):
                name = self.multiples.holding(c)
                if name is not None:
                    return Step(here, target, ((ONE, self.given[i]),), out_scale=name)
        return None

    def _by_channel(self, here: Value, target: Value, usable: Tensor) -> Step | None:
        """A step `target = a * here + b * value`, with factors for each channel or numbers."""
        x, y = (self.multiples.by_channel(value) for value in (here, target))
        for i in usable.nonzero().flatten().tolist():
            value = self.multiples.by_channel(self.given[i])
            factors = _two_factors(x, value, y)
            if factors is None:
                continue
            a, b = factors
            if (y - a * x - b * value).norm() > self.tolerance * target.size:
                continue
            if min((a * x).norm(), (b * value).norm()) <= 1e-3 * target.size:
                continue  # one of the two alone makes the other state: this is no sum
            skip, factor = self.multiples.of(a), self.multiples.of(b)
            if skip is not None and factor is not None:
                return Step(here, target, ((factor, self.given[i]),), skip=skip)
        return None


def _two_factors(x: Tensor, value: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """For each channel the factors with the smallest error of `a * x + b * value = y`.

    Shapes: all `[rows, d_model]` -> two of `[d_model]`; None if `x` is a multiple of `value`.
    """
    xx, vv, xv = (x * x).sum(0), (value * value).sum(0), (x * value).sum(0)
    determinant = xx * vv - xv**2
    if bool((determinant <= 1e-6 * xx * vv).any()):
        return None
    xy, vy = (x * y).sum(0), (value * y).sum(0)
    return (xy * vv - vy * xv) / determinant, (vy * xx - xy * xv) / determinant


def _worth(path: list[Step]) -> tuple[int, int, int]:
    """The rank of a path: single additions count most, then few norms, then few steps."""
    return (
        sum(len(step.added) == 1 for step in path),
        -sum(step.norm is not None for step in path),
        -len(path),
    )
