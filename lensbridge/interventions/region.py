"""Region: the part of one activation that an intervention acts on; cut out, and put back.

Interventions have eight types for "which entries of which columns". A column is a position of the
whole run, the prompt and what generation adds. `Swap(("z", 1), source, positions=[1, 2])` in a run
on two examples edits the entries X:

    column            0    1    2    3
    example 0         .    X    X    .
    example 1         .    X    X    .

Before the run:

    ColumnOwner    what the columns belong to: a text, an encoder, a decoder or another stack
    InputColumns   how many columns an input has there: positions are checked against these
    Place          the point, and where in it: positions, heads, neurons, keys, subspace, when

In each pass of the run:

    Window         which columns the pass computes: 0 to 3 in the prompt, one in each later step
    Region         the entries X: a `Place` in a `Window`, as `[batch, n, (head), entry]`

Of the source:

    StoredSource   activations of another run by name, with the padding mask of that run
    SourceValues   the activation of the source at the point, with its `Window`
    Paired         for each column of the `Region` the value of the source, and whether it has one
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import EditError, InputError
from lensbridge.interventions.axis import Axes
from lensbridge.interventions.columns import Window, columns_of
from lensbridge.interventions.when import ALWAYS, When
from lensbridge.tensors.positions import Count

_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Place:
    """Where in one point an intervention acts.

    Args:
        name: canonical name of the point.
        axes: its axes.
        positions: normalized positions.
        heads: which heads; None for all.
        neurons: which entries of the last axis; None for all.
        keys: normalized columns that are attended to (the last axis of a pattern).
        subspace: `[d, k]`, orthonormal columns: only the coordinates along these are edited.
        when: in which part of a generation.
        count: whether positions and keys count the tokens of each text or columns.
    """

    name: str
    axes: Axes
    positions: Any = None
    heads: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None
    keys: Any = None
    subspace: Tensor | None = None
    when: When = ALWAYS
    count: Count = "tokens"

    @property
    def is_all_columns(self) -> bool:
        """Whether it means every column of every pass."""
        return self.positions is None and self.when.is_always

    @property
    def looks_elsewhere(self) -> bool:
        """Whether its keys are columns of an encoder that a decoder attends to."""
        return ".cross_attn." in self.name

    def inner(self, value: Tensor, window: Window) -> Tensor:
        """The part of a value that is edited: heads, neurons or coordinates.

        Shapes: `[batch, pos, (head), ...]` -> the same axes, some of them shorter.
        """
        if self.heads is not None:
            value = value.index_select(2, self._heads(value))
        last = self._last(value, window)
        if last is not None:
            value = _at_entries(value, last)
        return value if self.subspace is None else _coordinates(value, self.subspace)

    def outer(self, value: Tensor, seen: Tensor, new: Tensor, window: Window) -> Tensor:
        """A value whose part `seen` is replaced by `new`: the inverse of `inner`."""
        heads = None if self.heads is None else self._heads(value)
        part = value if heads is None else value.index_select(2, heads)
        if self.subspace is not None:
            change = (new - seen) @ self.subspace.to(new).T
            new = (part.to(new.dtype) + change).to(value.dtype)
        last = self._last(value, window)
        if last is not None:
            new = _with_entries(part, last, new.to(value.dtype))
        new = new.to(value.dtype)
        return new if heads is None else value.index_copy(2, heads, new)

    def _heads(self, value: Tensor) -> Tensor:
        return _index(self.heads or (), value.shape[2], value.device, f"{self.name}: head")

    def _last(self, value: Tensor, window: Window) -> Tensor | None:
        size = value.shape[-1]
        if self.neurons is not None:
            return _index(self.neurons, size, value.device, f"{self.name}: neuron")
        if self.keys is None:
            return None
        looked_at = replace(window, start=window.end - size)
        if self.looks_elsewhere:
            looked_at = Window(window.rows, 0, size, size, window.keys_mask)
        found, inside = columns_of(self.keys, looked_at, value.device, self.count)
        local = found - looked_at.start
        if len(local) == 1 or looked_at.real is None:
            return local[0][inside[0]]
        widths = inside.sum(-1)
        if not bool((widths == widths[0]).all()):
            raise InputError(
                f"{self.name}: keys are {int(widths.min())} to {int(widths.max())} positions of "
                "the texts in this batch, which have different lengths. Ask for keys that all of "
                "them have, or pass count='columns'."
            )
        return local[inside].reshape(len(local), -1)[: len(value)]


def _index(asked: tuple[int, ...], size: int, device: torch.device, what: str) -> Tensor:
    for entry in asked:
        if not -size <= entry < size:
            raise InputError(f"{what} {entry} is out of range; there are {size}.")
    return torch.tensor([entry % size for entry in asked], device=device)


def _at_entries(value: Tensor, chosen: Tensor) -> Tensor:
    """Entries of the last axis, `[n]`, or `[rows, n]` for those of each row."""
    if chosen.ndim == 1:
        return value.index_select(-1, chosen)
    return value.gather(-1, _spread(chosen, value))


def _with_entries(value: Tensor, chosen: Tensor, new: Tensor) -> Tensor:
    """A value with other entries: the inverse of `_at_entries`."""
    if chosen.ndim == 1:
        return value.index_copy(-1, chosen, new)
    return value.scatter(-1, _spread(chosen, value), new)


def _spread(chosen: Tensor, value: Tensor) -> Tensor:
    """Entries of each row, for all axes in between."""
    between = chosen.reshape(len(chosen), *[1] * (value.ndim - 2), -1)
    return between.expand(*value.shape[:-1], -1)


def _coordinates(value: Tensor, basis: Tensor) -> Tensor:
    wide = value.float() if value.dtype in _NARROW else value
    return wide @ basis.to(device=wide.device, dtype=wide.dtype)


@dataclass(frozen=True, eq=False)
class Region:
    """The part of one activation that an intervention acts on, in one pass.

    Args:
        place: where it is.
        window: the columns of the pass.
        step: the number of earlier passes.
        columns: `[rows or 1, n]`, which columns.
        inside: as `columns`, which of them this pass computes and the intervention is for.
        whole: the activation, with axes `[batch, pos, (head), ...]`.

    Shapes: `value` is `[batch, n, (head), last]`.
    """

    place: Place
    window: Window
    step: int
    columns: Tensor
    inside: Tensor
    whole: Tensor
    value: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.place.inner(self._rows(), self.window))

    @classmethod
    def of(cls, place: Place, window: Window, step: int, value: Tensor) -> "Region | None":
        """The region of a place in a value, which has the axes of the model; None if the pass
        computes nothing that the intervention is for.
        """
        columns, inside = columns_of(place.positions, window, value.device, place.count)
        inside = inside & place.when.holds(columns, window.prompt)
        if not place.is_all_columns and not bool(inside.any()):
            return None
        return cls(place, window, step, columns, inside, place.axes.ordered(value))

    @property
    def mask(self) -> Tensor:
        """Which of the region's columns hold tokens. Shapes: `[batch, n]`"""
        return self.window.is_token(self.columns).to(self.whole.device)

    @property
    def numbers(self) -> Tensor:
        """The positions of the region's columns, as they are counted. Shapes: as `columns`"""
        if self.place.count == "columns":
            return self.columns
        return self.window.numbers(self.columns)

    def _at(self) -> tuple[Tensor, Tensor]:
        local = (self.columns - self.window.start).clamp(0, self.whole.shape[1] - 1)
        rows = torch.arange(len(self.whole), device=local.device)[:, None]
        return rows, local.expand(len(self.whole), -1)

    def _rows(self) -> Tensor:
        return self.whole if self.place.positions is None else self.whole[self._at()]

    def changed(self, new: Tensor) -> Tensor:
        """The activation, with the axes of the model, and a new value in this region.

        Raises:
            EditError: the new value has another shape.
        """
        if new.shape != self.value.shape:
            raise EditError(
                f"{self.place.name}: the new value has shape {tuple(new.shape)}; the region has "
                f"{tuple(self.value.shape)}."
            )
        old = self._rows()
        new = self.place.outer(old, self.value, new, self.window)
        if self.place.is_all_columns:
            return self.place.axes.restored(new)
        inside = self.inside.expand(len(self.whole), -1)
        rows, local = (one.expand_as(inside)[inside] for one in self._at())
        return self.place.axes.restored(self.whole.index_put((rows, local), new[inside]))
