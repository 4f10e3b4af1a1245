"""CellBatch: patched runs in one batch, each of which starts at the first layer that it patches.

Each cell has a row: the unpatched run with the cell's edits in it. Three things are not computed:

- the layers before the cell's first, where the row is the unpatched run;
- the positions before the first one that the cell changes, which are the unpatched run too: the row
  reads their keys and values;
- the logits at positions that the metric does not read.

All rows are taken through a layer before any of them enters the next, in passes as large as is good
for the device.
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
from lensbridge.sites.heads import LatentSite
from lensbridge.sweeps.batch_hooks import BatchHooks
from lensbridge.sweeps.context import SweepContext
from lensbridge.sweeps.edit import Edit
from lensbridge.sweeps.edits import Edits, points_of
from lensbridge.sweeps.packing import mlp_of, packed
from lensbridge.sweeps.prefix import lengthen
from lensbridge.sweeps.rows import run_rows, same

ENOUGH_TOKENS = {"cpu": 640}
"""Positions in one pass above which time grows in proportion to their number, by device."""

ENOUGH_ELSEWHERE = 8192
"""The same for devices that are not in that table."""

MOST_CONTROLS = 4
"""Rows of a batch that patch nothing."""


@dataclass
class Row:
    """One run of a batch.

    Args:
        start: the first position that it holds.
        cell: what it patches; None: nothing.
        stream: its residual stream so far, `[batch, pos, d_model]`; None: the unpatched run's.
    """

    start: int
    cell: Edits | None = None
    stream: Tensor | None = None

    @property
    def layer(self) -> int:
        """Where it starts."""
        return self.cell.layer if self.cell else 0

    def within(self, layer: int, stop: int) -> list[Edit]:
        """What it patches in some layers."""
        return self.cell.within(layer, stop) if self.cell else []


@dataclass(frozen=True)
class CellBatch:
    """A batch of patched runs, with a few control rows that patch nothing.

    If a control row does not arrive at the logits of the unpatched run, the batch is discarded.

    Args:
        context: what all batches of the sweep share.
        cells: what the runs patch.
        on_progress: called after each span of layers with the share of the work that is done.
    """

    context: SweepContext
    cells: Sequence[Edits]
    on_progress: Callable[[float], None] = lambda share: None

    def run(self) -> list[Callable[[], Tensor]] | None:
        """A function for each cell that gives its logits; None if a control row fails.

        Logits are NaN at positions that are not read; the next function overwrites them.
        """
        rows = [Row(self.context.start(cell), cell) for cell in self.cells]
        controls = self._controls(rows)
        self._run_layers([*controls, *rows])
        logits = self._logits([*controls, *rows])
        wanted = (self.context.base.logits[:, self._reads(row)] for row in controls)
        if not all(map(partial(same, kernels=True), logits, wanted)):
            return None
        patched = zip(rows, logits[len(controls) :], strict=True)
        return [partial(self.context.show, part, self._reads(row)) for row, part in patched]

    def _controls(self, rows: Sequence[Row]) -> list[Row]:
        """Control rows: at the first, second, middle and last position where rows begin."""
        starts = sorted({row.start for row in rows})
        chosen = {0, min(1, len(starts) - 1), len(starts) // 2, len(starts) - 1}
        return [Row(starts[i]) for i in sorted(chosen)]

    def _reads(self, row: Row) -> list[int]:
        """The positions of a row's logits that are read and can differ."""
        return [read for read in self.context.reads if read >= row.start]

    def _run_layers(self, rows: Sequence[Row]) -> None:
        """Take every row through the last layer, at the positions that are read."""
        for layer, stop in self._spans(rows):
            active = [row for row in rows if row.cell is None or row.layer <= layer]
            for group in self._passes(active):
                self._run_span(group, layer, stop)
            self.on_progress((stop / self._depth) ** 2)  # later layers have more rows

    def _spans(self, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
        """From each layer where cells start to the next such layer, or to the end."""
        layers = {row.layer for row in rows if row.cell}
        if self._ends_at_one:
            layers.add(self._depth - 1)
        ordered = sorted(layers)
        yield from zip(ordered, [*ordered[1:], self._depth], strict=True)

    def _passes(self, active: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows for one pass: those that begin at one position, or at several where these are few.

        A pass begins at the first position of its rows, so rows that begin later compute more than
        they need; but a pass of few rows costs nearly as much as one of many.
        """
        base, batch, end = self.context.base, self.context.base.batch, self.context.end
        ordered = sorted(active, key=lambda row: row.start)
        enough = ENOUGH_TOKENS.get(base.logits.device.type, ENOUGH_ELSEWHERE)
        rest = batch * sum(end - row.start for row in ordered)
        group: list[Row] = []
        for row in ordered:
            tokens = batch * len(group) * (end - group[0].start) if group else 0
            if tokens >= enough and rest >= enough // 2 and row.start != group[-1].start:
                yield group
                group = []
            group.append(row)
            rest -= batch * (end - row.start)
        yield group

    def _run_span(self, group: Sequence[Row], layer: int, stop: int) -> None:
        """Take rows from one layer up to another."""
        context, start = self.context, group[0].start
        rows = self._stacked(group, layer)
        edits = [(i, edit) for i, row in enumerate(group) for edit in row.within(layer, stop)]
        hooks = BatchHooks(edits, context.base, [row.start for row in group])
        at_one = stop == self._depth and self._ends_at_one and start < context.end - 1
        if at_one:
            rows = self._last_layer(rows, start, hooks)
        else:
            cache = self._cache(start, rows, range(layer, stop)) if start else None
            end = context.end
            pairs = hooks.pairs(start, end)
            with self._packed(group, layer, stop):
                rows = run_rows(context.base, rows, pairs, layer, stop, end=end, cache=cache)
        for row, stream in zip(group, rows.split(context.base.batch), strict=True):
            if at_one:
                row.stream = stream
            elif stop == self._depth:
                row.stream = stream[:, [read - start for read in self._reads(row)]]
            else:
                row.stream = stream[:, row.start - start :]

    def _packed(self, group: Sequence[Row], layer: int, stop: int) -> AbstractContextManager[None]:
        """Leave the positions before those of each row out of a layer's MLP.

        Its output there is not used: before the next layer they are filled in again.
        """
        context, start = self.context, group[0].start
        native = context.base.model.native
        module = None if native.main.positions_first else mlp_of(native.blocks[layer])
        points = [edit.point for row in group for edit in row.within(layer, stop)]
        points += [one.name for one in context.base.model.engine.listening]
        if module is None or stop != layer + 1 or self._are_on(module, points):
            return nullcontext()
        starts = torch.tensor([row.start for row in group for _ in range(context.base.batch)])
        if not (starts > start).any():
            return nullcontext()
        kept = torch.arange(start, context.end) >= starts[:, None]
        return packed(module, kept)

    def _are_on(self, module: nn.Module, points: Sequence[str]) -> bool:
        """Whether some of these points are on a module, or inside it."""
        inside = set(module.modules())
        sites = self.context.base.model.engine.sites
        return any(stage.module in inside for point in points for stage in sites[point].stages)

    def _stacked(self, group: Sequence[Row], layer: int) -> Tensor:
        """The streams of rows before a layer, from the first position of any of them on."""
        start = group[0].start
        unpatched = self._unpatched(layer, start)

        def whole(row: Row) -> Tensor:
            if row.stream is None:
                return unpatched
            stream = row.stream.to(unpatched.device)  # layers may be on several
            if row.start == start:
                return stream
            return torch.cat([unpatched[:, : row.start - start], stream], 1)

        return torch.cat([whole(row) for row in group])

    def _unpatched(self, layer: int, start: int) -> Tensor:
        return self.context.base.stream(layer)[:, start : self.context.end]

    def _logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """`[batch, read, d_vocab]` of each row; those with as many reads share the head."""
        base, streams = self.context.base, [row.stream for row in rows if row.stream is not None]
        by_row: dict[int, Tensor] = {}
        for count in {stream.shape[1] for stream in streams}:
            alike = [i for i, stream in enumerate(streams) if stream.shape[1] == count]
            together = torch.cat([streams[i] for i in alike])
            logits = base.model(together, start_at_layer=self._depth)
            by_row.update(zip(alike, logits.split(base.batch), strict=True))
        return [by_row[i] for i in range(len(streams))]

    @property
    def _depth(self) -> int:
        return len(self.context.base.model.native.blocks)

    @cached_property
    def _ends_at_one(self) -> bool:
        """Whether the last layer can be run for its last position alone: nothing else is read, and
        keys and values of the other positions can be computed without the rest of it.
        """
        context = self.context
        last = context.base.model.native.blocks[-1].attn
        alone = context.prefix is not None and list(context.reads) == [context.end - 1]
        alone = alone and not any(cell.mixes_late for cell in self.cells)
        return alone and last is not None and not self._forgets

    @property
    def _forgets(self) -> bool:
        """Whether the last layer's key/value cache lacks an edit. Latent attention keeps latents in
        it, and computes keys and values from them again.
        """
        sites = self.context.base.model.engine.sites
        points = (one for one in points_of(self.cells) if layer_of(one) == self._depth - 1)
        return any(isinstance(sites[point], LatentSite) for point in points)

    def _last_layer(self, rows: Tensor, start: int, hooks: BatchHooks) -> Tensor:
        """The last position after the last layer.

        For the other positions that layer only has to compute keys and values.
        """
        base, end = self.context.base, self.context.end
        read, layer = end - 1, self._depth - 1
        cache = self._cache(start, rows, range(layer, self._depth))
        z = f"{base.model.native.main.prefix}.{layer}.attn.hook_z"
        with suppress(_Enough):
            pairs = [*hooks.pairs(start, read), (z, _stop)]
            run_rows(base, rows[:, :-1], pairs, layer, self._depth, end=read, cache=cache)
        lengthen(cache, layer)
        pairs = hooks.pairs(read, end)
        return run_rows(base, rows[:, -1:], pairs, layer, self._depth, end=end, cache=cache)

    def _cache(self, start: int, rows: Tensor, running: range) -> Any:
        assert self.context.prefix is not None
        return self.context.prefix.cache(start, len(rows) // self.context.base.batch, running)


class _Enough(Exception):  # noqa: N818
    """Ends a pass once what is wanted of it has been computed."""


def _stop(activation: Tensor, hook: Hook) -> None:
    raise _Enough
