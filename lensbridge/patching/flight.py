"""Flight: cells that go through the model together, each joining at the layer that it patches.

A row of the batch is the unpatched run with one cell's value in its place. Up to the cell's layer
it is that run, so it starts there; what comes before the cell's position is that run too, so rows
hold the positions from there on and read the keys and values of the others; and behind the last
layer only the positions that the metric reads go to the head.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.derived import LatentSite
from lensbridge.hooks import Hook
from lensbridge.names import layer_of
from lensbridge.patching.cell import Cell
from lensbridge.patching.field import Field
from lensbridge.patching.joined import Joined
from lensbridge.patching.landing import Arrived
from lensbridge.patching.prefix import lengthen


@dataclass(frozen=True)
class Flight:
    """Cells whose rows begin at one position.

    Args:
        field: what all flights share.
        cells: these cells.
        start: that position.
        control: whether a row goes beside them that patches nothing, from the first layer on. If
            what comes of it is not the unpatched run's, nothing that came of the others is used.
    """

    field: Field
    cells: Sequence[Cell]
    start: int
    control: bool = True

    @cached_property
    def joining(self) -> dict[int, list[int]]:
        """Layer -> which cells join there."""
        found: dict[int, list[int]] = {}
        for i in sorted(range(len(self.cells)), key=lambda i: layer_of(self.cells[i].point) or 0):
            found.setdefault(layer_of(self.cells[i].point) or 0, []).append(i)
        return found

    def run(self) -> Arrived:
        """Take every cell behind the last layer."""
        rows, order = self._rows()
        wanted = [read for read in self.field.reads if read >= self.start]
        shown = [-1] if self._ends_at_one else [read - self.start for read in wanted]
        return Arrived(self.field, wanted, self.control, rows[:, shown], order)

    def _rows(self) -> tuple[Tensor, list[int]]:
        """The stream behind the last layer at the positions that matter: the control's rows, then
        the cells' as they joined.
        """
        order = list[int]()
        rows: Tensor | None = None
        for layer, stop in self._spans():
            own = self.joining.get(layer, [])
            joined = Joined(
                [self.cells[i] for i in own], self.control + len(order), self.field.base
            )
            rows = self._with_fresh(rows, layer, len(own))
            order += own
            if stop == self._depth and self._ends_at_one:
                rows = self._last_layer(rows, layer, joined)
            else:
                rows = self._through(rows, layer, stop, joined)
        assert rows is not None
        return rows, order

    def _with_fresh(self, rows: Tensor | None, layer: int, count: int) -> Tensor:
        """The rows in front of a layer, with those of the cells that join there."""
        first = rows is None and self.control
        if not (first or count):
            assert rows is not None
            return rows
        fresh = _copies(self._stream(layer), first + count)
        return fresh if rows is None else torch.cat([rows, fresh])

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
        return alone and last is not None and self.start < field.end - 1 and not self._forgets

    @property
    def _forgets(self) -> bool:
        """Whether the last layer's key/value cache lacks an edit: that of latent attention keeps
        what keys and values are made of.
        """
        sites = self.field.base.model.engine.sites
        own = (self.cells[i].point for i in self.joining.get(self._depth - 1, []))
        return any(isinstance(sites[point], LatentSite) for point in own)

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

    def _through(self, rows: Tensor, layer: int, stop: int, joined: Joined) -> Tensor:
        """The rows behind some layers."""
        prefix, more = self.field.prefix, dict[str, Any]()
        if prefix is not None and self.start:
            copies = len(rows) // self.field.base.batch
            more["past_key_values"] = prefix.cache(self.start, copies, range(layer, stop))
        hooks = joined.hooks(self.start, self.field.end)
        return self._run(rows, hooks, layer, stop, self.field.end, more)

    def _last_layer(self, rows: Tensor, layer: int, joined: Joined) -> Tensor:
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


def _copies(rows: Tensor, count: int) -> Tensor:
    return rows.repeat(count, *[1] * (rows.ndim - 1))
