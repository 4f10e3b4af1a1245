"""Flight: cells that go through the model together, each joining at the layer that it patches.

A row of the batch is the unpatched run with one cell's value in its place. Up to the cell's layer
it is that run, so it starts there; what comes before the cell's position is that run too, so rows
hold the positions from there on and read the keys and values of the others; and behind the last
layer only the positions that the metric reads go to the head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from lensbridge.hooks import Hook
from lensbridge.names import layer_of
from lensbridge.patching.cell import Cell, write
from lensbridge.patching.prefix import Prefix, lengthen, same
from lensbridge.patching.setters import INDEXED_AXES
from lensbridge.patching.unpatched import Base


def position_of(cell: Cell, axes: Sequence[str]) -> int:
    """The first position that a cell writes to; 0 where that cannot be told.

    Example:
        >>> position_of(Cell("z", (slice(None), 5, 2), 0.0), ["b", "p", "h", "d"])
        5
    """
    if cell.first is not None:
        return cell.first
    axis = next((i for i, letter in enumerate(axes) if letter in "pq"), None)
    if axis is None:
        return 0
    if cell.setter is write:
        index = cell.index if isinstance(cell.index, tuple) else (cell.index,)
        return _first(index[axis]) if axis < len(index) and _is_plain(index) else 0
    placed = INDEXED_AXES.get(cell.setter, ())
    return _first(cell.index[1 + placed.index(axis)]) if axis in placed else 0


def _is_plain(index: tuple[Any, ...]) -> bool:
    """Whether each entry of an index is about the axis at its own place."""
    return all(isinstance(one, int | slice | list) for one in index)


def _first(one: Any) -> int:
    if isinstance(one, slice):
        one = one.start if one.step is None or one.step > 0 else 0
    found = min(one) if isinstance(one, list) and one else one
    return found if isinstance(found, int) and found > 0 else 0


@dataclass(frozen=True)
class Field:
    """What every flight of a sweep shares.

    Args:
        base: the unpatched run; it kept the stream at each layer where a cell joins.
        prefix: keys and values of that run, or None where rows hold every position.
        reads: the positions of the logits that the metric reads.
        end: behind the last position that matters.
    """

    base: Base
    prefix: Prefix | None
    reads: Sequence[int]
    end: int

    @cached_property
    def logits(self) -> Tensor:
        """What metrics are given: NaN where they do not read."""
        return torch.full_like(self.base.logits, torch.nan)

    @classmethod
    def of(
        cls, base: Base, prefix: Prefix | None, reads: Sequence[int], cells: Sequence[Cell]
    ) -> "Field":
        """The field of some cells. A pattern may be told to look ahead, so it needs every key."""
        whole = prefix is None or any("k" in base.axes(cell.point) for cell in cells)
        return cls(base, prefix, reads, base.logits.shape[1] if whole else reads[-1] + 1)

    def start(self, cell: Cell) -> int:
        """Where the rows of a cell may begin."""
        return 0 if self.prefix is None else position_of(cell, self.base.axes(cell.point))


@dataclass(frozen=True)
class Flight:
    """Cells whose rows begin at one position.

    Beside them goes a row that patches nothing, from the first layer on. If what comes of it is not
    the unpatched run's, nothing that came of the others is used.
    """

    field: Field
    cells: Sequence[Cell]
    start: int

    @cached_property
    def joining(self) -> dict[int, list[int]]:
        """Layer -> which cells join there."""
        found: dict[int, list[int]] = {}
        for i in sorted(range(len(self.cells)), key=lambda i: layer_of(self.cells[i].point) or 0):
            found.setdefault(layer_of(self.cells[i].point) or 0, []).append(i)
        return found

    def run(self) -> list[Callable[[], Tensor]] | None:
        """Logits of each cell when they are asked for; None if the control fails.

        They are NaN at positions that are not read, and good until the next are asked for.
        """
        base = self.field.base
        rows, order = self._rows()
        wanted = [read for read in self.field.reads if read >= self.start]
        shown = [-1] if self._ends_at_one else [read - self.start for read in wanted]
        last = rows[:, shown]
        depth = len(base.model.native.blocks)
        logits = base.model(last, start_at_layer=depth)
        assert isinstance(logits, Tensor)
        control, *parts = logits.split(base.batch)
        if not same(control, base.logits[:, wanted]):
            return None
        found = dict(zip(order, parts, strict=True))
        return [partial(self._whole, found[i], wanted) for i in range(len(self.cells))]

    def _whole(self, part: Tensor, wanted: Sequence[int]) -> Tensor:
        """Logits of one cell where they belong. The next cell's are written to the same tensor."""
        field = self.field
        for read in field.reads:
            if read < self.start:
                field.logits[:, read] = field.base.logits[:, read]
        for i, read in enumerate(wanted):
            field.logits[:, read] = part[:, i]
        return field.logits

    def _rows(self) -> tuple[Tensor, list[int]]:
        """The stream behind the last layer at the positions that matter: the control's rows, then
        the cells' as they joined.
        """
        base, order = self.field.base, list[int]()
        rows: Tensor | None = None
        for layer, stop in self._spans():
            own = self.joining.get(layer, [])
            stream = self._stream(layer)
            fresh = [stream] if rows is None else [rows]
            rows = torch.cat([*fresh, _copies(stream, len(own))]) if own or rows is None else rows
            joined = Joined([self.cells[i] for i in own], 1 + len(order), base)
            order += own
            if stop == self._depth and self._ends_at_one:
                rows = self._last_layer(rows, layer, joined)
            else:
                rows = self._through(rows, layer, stop, joined)
        assert rows is not None
        return rows, order

    @property
    def _depth(self) -> int:
        return len(self.field.base.model.native.blocks)

    @cached_property
    def _ends_at_one(self) -> bool:
        """Whether one position of the last layer is all that is read, and its keys can be had
        without it.
        """
        field = self.field
        last = field.base.model.native.blocks[-1].attn
        alone = field.prefix is not None and list(field.reads) == [field.end - 1]
        return alone and last is not None and self.start < field.end - 1

    def _spans(self) -> Iterator[tuple[int, int]]:
        """From each layer where cells join to the next, or to the end."""
        layers = list(self.joining)
        if self._ends_at_one and layers[-1] != self._depth - 1:
            layers.append(self._depth - 1)
        yield from zip(layers, [*layers[1:], self._depth], strict=True)

    def _stream(self, layer: int) -> Tensor:
        base = self.field.base
        stream = base.cache[f"{base.model.native.main.prefix}.{layer}.hook_resid_pre"]
        return stream[:, self.start : self.field.end]

    def _through(self, rows: Tensor, layer: int, stop: int, joined: "Joined") -> Tensor:
        """The rows behind some layers."""
        prefix, more = self.field.prefix, dict[str, Any]()
        if prefix is not None and self.start:
            copies = len(rows) // self.field.base.batch
            more["past_key_values"] = prefix.cache(self.start, copies, range(layer, stop))
        hooks = joined.hooks(self.start, self.field.end)
        return self._run(rows, hooks, layer, stop, self.field.end, more)

    def _last_layer(self, rows: Tensor, layer: int, joined: "Joined") -> Tensor:
        """The last position behind the last layer.

        Of the positions before it that layer has to make keys and values, and nothing more.
        """
        prefix, read = self.field.prefix, self.field.end - 1
        assert prefix is not None
        copies = len(rows) // self.field.base.batch
        cache = prefix.cache(self.start, copies, range(layer, self._depth))
        more = {"past_key_values": cache}
        z = f"{self.field.base.model.native.main.prefix}.{layer}.attn.hook_z"
        with suppress(_Enough):
            hooks = [*joined.hooks(self.start, read), (z, _stop)]
            self._run(rows[:, :-1], hooks, layer, self._depth, read, more)
        lengthen(cache, layer)
        hooks = joined.hooks(read, self.field.end)
        return self._run(rows[:, -1:], hooks, layer, self._depth, self.field.end, more)

    def _run(
        self,
        rows: Tensor,
        hooks: list[tuple[Any, Any]],
        layer: int,
        stop: int,
        end: int,
        more: dict[str, Any],
    ) -> Tensor:
        base = self.field.base
        mask = base.cache.attention_mask
        if mask is not None:
            copies = len(rows) // base.batch
            more = {**more, "attention_mask": _copies(mask[:, :end], copies)}
        out = base.model.run_with_hooks(
            rows, hooks, start_at_layer=layer, stop_at_layer=stop, **more
        )
        assert isinstance(out, Tensor)
        return out


class _Enough(Exception):  # noqa: N818
    """What is wanted of a pass has been computed."""


def _stop(activation: Tensor, hook: Hook) -> None:
    raise _Enough


@dataclass(frozen=True)
class Joined:
    """Cells that join a flight at one layer.

    Args:
        cells: these cells.
        behind: how many copies of the batch are in front of theirs.
        base: the unpatched run.
    """

    cells: Sequence[Cell]
    behind: int
    base: Base

    def hooks(self, start: int, end: int) -> list[tuple[Any, Any]]:
        """One hook for each point, for rows that hold the positions from `start` to `end`."""
        by_point: dict[Any, list[tuple[int, Cell]]] = {}
        for i, cell in enumerate(self.cells, start=self.behind):
            by_point.setdefault(cell.point, []).append((i, cell))
        return [(point, self._hook(own, start, end)) for point, own in by_point.items()]

    def _hook(
        self, own: Sequence[tuple[int, Cell]], start: int, end: int
    ) -> Callable[[Tensor, Hook], None]:
        batch = self.base.batch

        def patch(activation: Tensor, hook: Hook) -> None:
            for i, cell in own:
                rows = activation[i * batch : (i + 1) * batch]
                given = self._placed(cell, rows, start, end)
                if given is not rows:
                    rows.copy_(given)

        return patch

    def _placed(self, cell: Cell, rows: Tensor, start: int, end: int) -> Tensor:
        """A cell's rows after it was applied; its index counts from the first position."""
        whole = self.base.shape(cell.point)
        if tuple(rows.shape) == whole:
            return cell.apply(rows)
        place = tuple(
            slice(start, end) if letter in "pq" and length == end - start else slice(length)
            for letter, length in zip(self.base.axes(cell.point), rows.shape, strict=True)
        )
        padded = self.base.cache[cell.point].clone()  # at the cell's layer nothing differs yet
        padded[place] = rows
        return cell.apply(padded)[place]


def _copies(rows: Tensor, count: int) -> Tensor:
    return rows.repeat(count, *[1] * (rows.ndim - 1))
