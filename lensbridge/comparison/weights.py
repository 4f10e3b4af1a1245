"""How far each weight of one model is from that of another, read one at a time."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lensbridge.comparison.side import Side
from lensbridge.errors import WeightError, suggest
from lensbridge.points.names import LAYER, layer_of, stack_of

_OF_VOCABULARY = ("W_E", "W_U", "b_U", "W_pos")
"""Weights that grow with the vocabulary or the context: what both models have is compared."""

_NUMBER = re.compile(r"\.(\d+)\.")
"""The layer in a native name."""


@dataclass(frozen=True)
class WeightChange:
    """One weight in both models.

    Args:
        name: its name, as `model.weight` takes it; a parameter that has no name here has its
            native name.
        layer: the number of its layer; None outside the layers.
        kind: its name without the layer: "attn.W_Q".
        size: the norm of the weight in a.
        difference: the norm of b's minus a's.
        shapes: its shapes in a and in b. Where they differ, the part that both have is compared.

    Units: norms are those of all entries together (Frobenius).
    """

    name: str
    layer: int | None
    kind: str
    size: float
    difference: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def change(self) -> float:
        """The relative change: the norm of the difference over that of a's weight."""
        return _ratio(self.difference, self.size)


@dataclass(frozen=True)
class WeightChanges:
    """The weights of two models.

    Args:
        rows: those that both have, the largest change first.
        only_a: names of weights that only a has.
        only_b: names of weights that only b has.
        incomparable: names and shapes of weights whose shapes do not match.
        notes: what else is to be known: tied weights, shapes that differ.
    """

    rows: list[WeightChange]
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    incomparable: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def by_layer(self) -> dict[int, float]:
        """The relative change of all weights of a layer of the main stack together."""
        return _together(self.rows, lambda row: row.layer if row.kind[0] != "(" else None)

    @property
    def by_kind(self) -> dict[str, float]:
        """The relative change of all weights of a kind together, the largest first."""
        found = _together(self.rows, lambda row: row.kind)
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def __getitem__(self, name: str) -> WeightChange:
        """The change of one weight, by its name.

        Raises:
            WeightError: it was not compared.
        """
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            near = suggest(name, [row.name for row in self.rows])
            raise WeightError(f"There is no change of a weight {name!r}.{near}")
        return found


def _ratio(difference: float, size: float) -> float:
    if size:
        return difference / size
    return float("inf") if difference else 0.0


def _together(rows: Sequence[WeightChange], key: Callable[[WeightChange], Any]) -> dict[Any, float]:
    """The relative change of the rows with the same key."""
    sums: dict[Any, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        if (at := key(row)) is not None:
            sums[at][0] += row.difference**2
            sums[at][1] += row.size**2
    return {at: _ratio(d**0.5, s**0.5) for at, (d, s) in sorted(sums.items(), key=_order)}


def _order(pair: tuple[Any, Any]) -> tuple[int, str]:
    return (pair[0], "") if isinstance(pair[0], int) else (0, str(pair[0]))


def weight_changes(a: Side, b: Side) -> WeightChanges:
    """Compare every weight under the field's name, then the parameters that have none."""
    found = WeightChanges([])
    touched = _Touched(), _Touched()
    names = [set(side.model.weight_names) for side in (a, b)]
    found.only_a.extend(n for n in a.model.weight_names if n not in names[1])
    found.only_b.extend(n for n in b.model.weight_names if n not in names[0])
    for name in a.model.weight_names:
        if name in names[1]:
            pair = [t.read(s, name) for t, s in zip(touched, (a, b), strict=True)]
            _compare(found, a, name, *pair)
    for t, side, only in zip(touched, (a, b), (found.only_a, found.only_b), strict=True):
        for name in only:
            t.read(side, name)
    if a.model.native.core is b.model.native.core:  # adapters that are off are in no weight of a
        touched[0].seen |= touched[1].seen
    _compare_rest(found, a, dict(touched[0].rest(a)), dict(touched[1].rest(b)))
    found.rows.sort(key=lambda row: -row.change)
    found.notes.extend(_ties(a, b))
    return found


class _Touched(TorchFunctionMode):
    """Notes the parameters that reads of weights use, to find those that no weight is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _note(self, values: Any) -> None:
        self.seen |= {id(one) for one in tree_leaves(values) if isinstance(one, nn.Parameter)}

    def read(self, side: Side, name: str) -> Tensor:
        """The tensor of one weight; its parameters count as seen."""
        with side.without(), torch.no_grad(), self:
            value = side.model.weight(name)
        self._note(value)
        return value.detach()

    def rest(self, side: Side) -> Iterator[tuple[str, Tensor]]:
        """The parameters that no weight was made of, by native name."""
        for name, value in side.model.native.core.named_parameters():
            if id(value) not in self.seen and value.is_floating_point() and not value.is_meta:
                yield name, value.detach()


def _compare_rest(
    found: WeightChanges, a: Side, one: dict[str, Tensor], other: dict[str, Tensor]
) -> None:
    found.only_a.extend(name for name in one if name not in other)
    found.only_b.extend(name for name in other if name not in one)
    for name in one:
        if name in other:
            _compare(found, a, name, one[name], other[name])


def _compare(found: WeightChanges, a: Side, name: str, one: Tensor, other: Tensor) -> None:
    """Add one weight to what was found."""
    shapes = tuple(one.shape), tuple(other.shape)
    if shapes[0] != shapes[1]:
        axes = _grown(name, *shapes)
        if axes is None:
            found.incomparable[name] = shapes
            found.notes.append(f"{name} is {list(shapes[0])} in a and {list(shapes[1])} in b")
            return
        both = min(shapes[0][axes], shapes[1][axes])
        one, other = one.narrow(axes, 0, both), other.narrow(axes, 0, both)
        found.notes.append(
            f"{name} is {list(shapes[0])} in a and {list(shapes[1])} in b: the first {both} of "
            f"axis {axes} are compared"
        )
    size, difference = _norms(one, other)
    if size or difference:  # a bias that neither has is zeros
        found.rows.append(_row(a, name, size, difference, shapes))


def _grown(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """The axis along which a weight of the vocabulary has grown; None for other changes."""
    if not name.endswith(_OF_VOCABULARY) or len(one) != len(other):
        return None
    differ = [i for i, (m, n) in enumerate(zip(one, other, strict=True)) if m != n]
    return differ[0] if len(differ) == 1 else None


def _norms(one: Tensor, other: Tensor) -> tuple[float, float]:
    dtype = torch.float64 if torch.float64 in (one.dtype, other.dtype) else torch.float32
    one = one.as_subclass(Tensor).to(dtype)
    other = other.as_subclass(Tensor).to(one.device, dtype)
    return float(one.norm()), float((other - one).norm())


def _row(a: Side, name: str, size: float, difference: float, shapes: Any) -> WeightChange:
    stack, layer = stack_of(name), layer_of(name)
    rest = LAYER.sub("", name)
    kind = rest if stack in ("", a.model.native.main.prefix) else f"({stack}) {rest}"
    number = _NUMBER.search(name) if not stack and len(a.model.native.stacks) == 1 else None
    if number is not None:  # a native name
        layer, kind = int(number[1]), _NUMBER.sub(".*.", name, count=1)
    return WeightChange(name, layer, kind, size, difference, shapes)


def _ties(a: Side, b: Side) -> Iterator[str]:
    """Notes on heads that are tied to the embedding."""
    tied = [_is_tied(side) for side in (a, b)]
    if all(tied):
        yield "unembed.W_U is embed.W_E in both models (tied), so it changes with it"
    elif any(tied):
        here, there = ("a", "b") if tied[0] else ("b", "a")
        yield f"unembed.W_U is embed.W_E (tied) in {here}, and a weight of its own in {there}"


def _is_tied(side: Side) -> bool:
    native = side.model.native
    embed, head = native.main.embed, native.unembed
    if embed is None or head is None:
        return False
    table, weight = (m._parameters.get("weight") for m in (embed, head.module))
    return table is not None and table is weight
