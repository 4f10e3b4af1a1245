"""CellBatch: cells that go through the model together, each joining at the layer that it patches.

Each cell has a row: the unpatched run with the cell's value in its place. Up to the cell's layer it
is that run, so it starts there; what comes before the cell's position is that run too, so the row
holds the positions from there on and reads the keys and values of the others; and behind the last
layer only the positions that the metric reads go to the head. All rows of a flight are taken
through a layer before any of them enters the next, in batches as large as is good for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.hooks.callbacks import Hook
from lensbridge.points.names import layer_of
from lensbridge.sites.derived import LatentSite
from lensbridge.sweeps.batch_hooks import BatchHooks
from lensbridge.sweeps.context import SweepContext
from lensbridge.sweeps.edit import Edit
from lensbridge.sweeps.packing import mlp_of, packed
from lensbridge.sweeps.prefix import lengthen
from lensbridge.sweeps.rows import run_rows, same

ENOUGH_TOKENS = {"cpu": 640}
"""Positions in a batch from which on more of them cost in proportion, by device."""

ENOUGH_ELSEWHERE = 8192
"""The same for the devices that are not named there."""

MOST_CONTROLS = 4
"""Rows of a flight that patch nothing."""


@dataclass
class Row:
    """One run of a flight.

    Args:
        start: the first position that it holds.
        cell: what it patches; None: nothing.
        stream: where it is, `[batch, pos, d_model]`; None: where the unpatched run is.
    """

    start: int
    cell: Edit | None = None
    stream: Tensor | None = None

    @property
    def layer(self) -> int:
        """Where it joins."""
        return (layer_of(self.cell.point) or 0) if self.cell else 0


@dataclass(frozen=True)
class CellBatch:
    """Cells that fly together.

    Beside them go rows that patch nothing. If what comes of them is not the unpatched run's,
    nothing that came of the others is used.

    Args:
        field: what all flights share.
        cells: these cells.
        on_the_way: told, after every layer or so, which share of the way they have come.
    """

    field: SweepContext
    cells: Sequence[Edit]
    on_the_way: Callable[[float], None] = lambda share: None

    def run(self) -> list[Callable[[], Tensor]] | None:
        """Logits of each cell when they are asked for; None if a control fails.

        They are NaN at positions that are not read, and good until the next are asked for.
        """
        rows = [Row(self.field.start(cell), cell) for cell in self.cells]
        controls = self._controls(rows)
        self._fly([*controls, *rows])
        logits = self._logits([*controls, *rows])
        wanted = (self.field.base.logits[:, self._reads(row)] for row in controls)
        if not all(map(partial(same, kernels=True), logits, wanted)):
            return None
        shown = zip(rows, logits[len(controls) :], strict=True)
        return [partial(self.field.show, one, self._reads(row)) for row, one in shown]

    def _controls(self, rows: Sequence[Row]) -> list[Row]:
        """From the first, the second, the middle and the last place where rows begin."""
        starts = sorted({row.start for row in rows})
        chosen = {0, min(1, len(starts) - 1), len(starts) // 2, len(starts) - 1}
        return [Row(starts[i]) for i in sorted(chosen)]

    def _reads(self, row: Row) -> list[int]:
        """The positions of a row's logits that are read and can differ."""
        return [read for read in self.field.reads if read >= row.start]

    def _fly(self, rows: Sequence[Row]) -> None:
        """Take every row behind the last layer, to the positions of it that are read."""
        for layer, stop in self._spans(rows):
            aboard = [row for row in rows if row.cell is None or row.layer <= layer]
            for batch in self._batches(aboard):
                self._through(batch, layer, stop)
            self.on_the_way((stop / self._depth) ** 2)  # they become more and more

    def _spans(self, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
        """From each layer where cells join to the next, or to the end."""
        layers = {row.layer for row in rows if row.cell}
        if self._ends_at_one:
            layers.add(self._depth - 1)
        ordered = sorted(layers)
        yield from zip(ordered, [*ordered[1:], self._depth], strict=True)

    def _batches(self, aboard: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows that begin at one position, or at a few where those are too few.

        A batch begins at the first position of its rows, so those further on compute more than they
        need; but a batch of few rows costs nearly as much as one of many.
        """
        field = self.field
        ordered = sorted(aboard, key=lambda row: row.start)
        enough = ENOUGH_TOKENS.get(field.base.logits.device.type, ENOUGH_ELSEWHERE)
        rest = sum(field.end - row.start for row in ordered) * field.base.batch
        batch: list[Row] = []
        for row in ordered:
            tokens = len(batch) * field.base.batch * (field.end - batch[0].start) if batch else 0
            if tokens >= enough and rest >= enough // 2 and row.start != batch[-1].start:
                yield batch
                batch = []
            batch.append(row)
            rest -= (field.end - row.start) * field.base.batch
        yield batch

    def _through(self, batch: Sequence[Row], layer: int, stop: int) -> None:
        """Take rows behind some layers."""
        field, start = self.field, batch[0].start
        rows = self._stacked(batch, layer)
        joined = BatchHooks(
            [(i, row.cell) for i, row in enumerate(batch) if row.cell and row.layer == layer],
            field.base,
        )
        at_one = stop == self._depth and self._ends_at_one and start < field.end - 1
        if at_one:
            rows = self._last_layer(rows, start, joined)
        else:
            cache = self._cache(start, rows, range(layer, stop)) if start else None
            hooks = joined.hooks(start, field.end)
            with self._packed(batch, layer, stop):
                rows = run_rows(field.base, rows, hooks, layer, stop, end=field.end, cache=cache)
        for row, own in zip(batch, rows.split(field.base.batch), strict=True):
            if at_one:
                row.stream = own
            elif stop == self._depth:
                row.stream = own[:, [read - start for read in self._reads(row)]]
            else:
                row.stream = own[:, row.start - start :]

    def _packed(self, batch: Sequence[Row], layer: int, stop: int) -> AbstractContextManager[None]:
        """Spare a layer's MLP the positions in front of where rows begin.

        Nobody reads what it makes of them: in front of the next layer they are filled in again.
        """
        field, start = self.field, batch[0].start
        module = mlp_of(field.base.model.native.blocks[layer])
        own = [row.cell.point for row in batch if row.cell and row.layer == layer]
        if module is None or stop != layer + 1 or self._are_on(module, own):
            return nullcontext()
        starts = torch.tensor([row.start for row in batch for _ in range(field.base.batch)])
        if not (starts > start).any():
            return nullcontext()
        kept = torch.arange(start, field.end) >= starts[:, None]
        return packed(module, kept)

    def _are_on(self, module: nn.Module, points: Sequence[str]) -> bool:
        """Whether some of these points live on a module, or inside it."""
        inside = set(module.modules())
        stages = (self.field.base.model.engine.sites[point].stages for point in points)
        return any(stage.module in inside for own in stages for stage in own)

    def _stacked(self, batch: Sequence[Row], layer: int) -> Tensor:
        """Where rows are in front of a layer, from the first position of any of them on."""
        start = batch[0].start
        unpatched = self._unpatched(layer, start)

        def whole(row: Row) -> Tensor:
            if row.stream is None:
                return unpatched
            stream = row.stream.to(unpatched.device)  # layers may be on several
            if row.start == start:
                return stream
            return torch.cat([unpatched[:, : row.start - start], stream], 1)

        return torch.cat([whole(row) for row in batch])

    def _unpatched(self, layer: int, start: int) -> Tensor:
        base = self.field.base
        stream = base.cache[f"{base.model.native.main.prefix}.{layer}.hook_resid_pre"]
        return stream[:, start : self.field.end]

    def _logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """`[batch, read, d_vocab]` of each row; those with as many reads share the head."""
        streams = [row.stream for row in rows if row.stream is not None]
        found: dict[int, Tensor] = {}
        for count in {one.shape[1] for one in streams}:
            own = [i for i, one in enumerate(streams) if one.shape[1] == count]
            together = torch.cat([streams[i] for i in own])
            logits = self.field.base.model(together, start_at_layer=self._depth)
            found.update(zip(own, logits.split(self.field.base.batch), strict=True))
        return [found[i] for i in range(len(streams))]

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
        return alone and last is not None and not self._forgets

    @property
    def _forgets(self) -> bool:
        """Whether the last layer's key/value cache lacks an edit: that of latent attention keeps
        what keys and values are made of.
        """
        sites = self.field.base.model.engine.sites
        own = (one.point for one in self.cells if layer_of(one.point) == self._depth - 1)
        return any(isinstance(sites[point], LatentSite) for point in own)

    def _last_layer(self, rows: Tensor, start: int, joined: BatchHooks) -> Tensor:
        """The last position behind the last layer.

        Of the positions before it that layer has to make keys and values, and nothing more.
        """
        base, end = self.field.base, self.field.end
        read, layer = end - 1, self._depth - 1
        cache = self._cache(start, rows, range(layer, self._depth))
        z = f"{base.model.native.main.prefix}.{layer}.attn.hook_z"
        with suppress(_Enough):
            hooks = [*joined.hooks(start, read), (z, _stop)]
            run_rows(base, rows[:, :-1], hooks, layer, self._depth, end=read, cache=cache)
        lengthen(cache, layer)
        hooks = joined.hooks(read, end)
        return run_rows(base, rows[:, -1:], hooks, layer, self._depth, end=end, cache=cache)

    def _cache(self, start: int, rows: Tensor, running: range) -> Any:
        assert self.field.prefix is not None
        return self.field.prefix.cache(start, len(rows) // self.field.base.batch, running)


class _Enough(Exception):  # noqa: N818
    """What is wanted of a pass has been computed."""


def _stop(activation: Tensor, hook: Hook) -> None:
    raise _Enough
