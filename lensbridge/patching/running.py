"""How the cells of a sweep are run: one forward pass for each, or many of one layer at a time.

Both give the same numbers (up to rounding). The first is the definition; the second makes a batch
of cells, each the whole input once, and starts at the layer that they patch, from the stream that
the unpatched run had there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lensbridge.errors import InputError
from lensbridge.hooks import Hook
from lensbridge.names import layer_of, stack_of
from lensbridge.patching.base import Base
from lensbridge.patching.cell import Cell
from lensbridge.patching.metric import Metrics

if TYPE_CHECKING:
    from lensbridge.model import LensModel

MAX_BATCH_TOKENS = 4096
"""Positions in one batch of cells, by default."""

_PLAIN_INPUT = frozenset({"input_ids", "attention_mask"})


@dataclass(frozen=True)
class Engine:
    """How to run cells.

    Args:
        exact: True runs one forward pass for each cell; False makes batches and refuses where that
            cannot be done; None makes batches where it can be done.
        max_batch_tokens: how many positions a batch may have in all.
        verbose: whether to show a progress bar.
    """

    exact: bool | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    verbose: bool = False


@dataclass
class Run:
    """What came of running cells.

    Shapes: values `[metric, cell]` or `[metric, cell, batch]`, NaN where a cell did not run.

    Args:
        values: of the metrics.
        baseline: of the unpatched run, `[metric]` or `[metric, batch]`.
        partial: whether somebody interrupted it.
        reasons: why cells ran one by one that could have run in batches elsewhere.
    """

    values: Tensor
    baseline: Tensor
    partial: bool = False
    reasons: list[str] = field(default_factory=list)

    @property
    def engine(self) -> str:
        """How the cells were run, in words."""
        why = "; ".join(dict.fromkeys(self.reasons))
        return f"one by one: {why}" if why else "batched"


Keep = Callable[[int, Tensor], None]


def run_cells(base: Base, cells: Sequence[Cell], metrics: Metrics, engine: Engine) -> Run:
    """Measure every cell. Ctrl-C ends the sweep and leaves NaN for the cells that did not run.

    Raises:
        InputError: a metric that does not fit, or `exact=False` for cells that cannot be run in
            batches.
    """
    baseline = metrics.baseline(base.logits)
    shape = (baseline.shape[0], len(cells), *baseline.shape[1:])
    run = Run(baseline.new_full(shape, torch.nan), baseline)
    bar = tqdm(total=len(cells), disable=not engine.verbose, desc="patching")

    def keep(i: int, logits: Tensor) -> None:
        run.values[:, i] = metrics.measure(logits)
        bar.update()

    try:
        with torch.no_grad(), bar:
            _run_all(base, cells, engine, keep, run)
    except KeyboardInterrupt:
        run.partial = True
    return run


def _run_all(base: Base, cells: Sequence[Cell], engine: Engine, keep: Keep, run: Run) -> None:
    if engine.exact:
        run.reasons.append("asked for")
        single = list(range(len(cells)))
    else:
        why = [why_single(base, cell) for cell in cells]
        run.reasons += [one for one in why if one is not None]
        _refuse_single(engine, run.reasons)
        single = [i for i, one in enumerate(why) if one is not None]
        many = [i for i, one in enumerate(why) if one is None]
        for layer, indices in _by_layer(cells, many):
            Layer(base, layer, engine, run.reasons).run(cells, indices, keep)
    for i in single:
        keep(i, base.patched([cells[i]]))


def _refuse_single(engine: Engine, reasons: Sequence[str]) -> None:
    if engine.exact is False and reasons:
        raise InputError(f"These cells cannot be run in batches: {reasons[0]}. Pass exact=True.")


def _by_layer(cells: Sequence[Cell], indices: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    def layer(i: int) -> int:
        found = layer_of(cells[i].point)
        assert found is not None
        return found

    for one, group in groupby(sorted(indices, key=layer), layer):
        yield one, list(group)


# --- batches -----------------------------------------------------------------------------------


def entrances(model: "LensModel", cells: Sequence[Cell]) -> list[str]:
    """The streams from which cells of the main stack start; the base run has to keep them."""
    prefix = model.native.main.prefix
    inside = [cell.point for cell in cells if stack_of(cell.point) == prefix]
    return [f"{prefix}.{layer}.hook_resid_pre" for layer in dict.fromkeys(map(layer_of, inside))]


def why_single(base: Base, cell: Cell) -> str | None:
    """Why a cell cannot be run in a batch that starts at its layer, or None if it can."""
    native, engine = base.model.native, base.model.engine
    if native.is_encoder_decoder:
        return "an encoder-decoder cannot start at a layer"
    if not engine.is_idle:
        return "other hooks are on the model, and may act on earlier layers or on the batch"
    if any(block.repeat is not None for block in native.blocks):
        return "its layers share modules"
    if isinstance(base.input, Mapping) and not set(base.input) <= _PLAIN_INPUT:
        return "the input has more than ids and a mask"
    mask = base.cache.attention_mask
    if base.cache.tokens is None or (mask is not None and mask.ndim != 2):
        return "the input has no ids, or a mask of another form than [batch, pos]"
    if stack_of(cell.point) != native.main.prefix:
        return "a point outside the layers of the main stack"
    if base.axes(cell.point)[0] != "b":
        return f"{cell.point} has no batch axis"
    return None


@dataclass(frozen=True)
class Layer:
    """Cells of one layer, run in batches that start there.

    Beside the cells of its first batch runs one that patches nothing. If its logits are not the
    unpatched run's, or the model cannot start there, the layer's cells run one by one.
    """

    base: Base
    layer: int
    engine: Engine
    reasons: list[str]

    @property
    def _size(self) -> int:
        """Cells in a batch."""
        return max(1, self.engine.max_batch_tokens // self.base.n_tokens)

    def run(self, cells: Sequence[Cell], indices: Sequence[int], keep: Keep) -> None:
        """Run the cells with these indices and keep the logits of each."""
        size, start = self._size, 0
        while start < len(indices):
            control = start == 0
            chunk = indices[start : start + max(1, size - control)]
            parts = self._batch([cells[i] for i in chunk], control)
            if parts is None:
                self._run_single(cells, indices, keep)
                return
            for i, logits in zip(chunk, parts, strict=True):
                keep(i, logits)
            start += len(chunk)

    def _run_single(self, cells: Sequence[Cell], indices: Sequence[int], keep: Keep) -> None:
        _refuse_single(self.engine, self.reasons)
        for i in indices:
            keep(i, self.base.patched([cells[i]]))

    def _batch(self, cells: Sequence[Cell], control: bool) -> list[Tensor] | None:
        """Logits of each cell; None where the control shows that batches are not the same."""
        if not control:
            return self._forward(cells, len(cells))
        try:
            parts = self._forward(cells, len(cells) + 1)
        except Exception as error:  # whatever a native model raises when it is started late
            self.reasons.append(f"starting at layer {self.layer} raised {type(error).__name__}")
            return None
        if not _same(parts[-1], self.base.logits):
            self.reasons.append(f"started at layer {self.layer} the model gives other logits")
            return None
        return parts[:-1]

    def _forward(self, cells: Sequence[Cell], count: int) -> list[Tensor]:
        """Logits of `count` copies of the input, the first of which are patched."""
        base, prefix = self.base, self.base.model.native.main.prefix
        resid = base.cache[f"{prefix}.{self.layer}.hook_resid_pre"]
        mask = base.cache.attention_mask
        logits = base.model.run_with_hooks(
            _copies(resid, count),
            _hooks(cells, base.batch),
            start_at_layer=self.layer,
            attention_mask=None if mask is None else _copies(mask, count),
        )
        assert isinstance(logits, Tensor)
        return list(logits.split(base.batch))


def _copies(rows: Tensor, count: int) -> Tensor:
    return rows.repeat(count, *[1] * (rows.ndim - 1))


def _hooks(cells: Sequence[Cell], batch: int) -> list[tuple[Any, Any]]:
    """One hook for each point, which hands each cell the rows that are its own."""
    by_point: dict[Any, list[tuple[int, Cell]]] = {}
    for i, cell in enumerate(cells):
        by_point.setdefault(cell.point, []).append((i, cell))

    def hook(own: Sequence[tuple[int, Cell]]) -> Callable[[Tensor, Hook], None]:
        def patch(activation: Tensor, hook: Hook) -> None:
            for i, cell in own:
                rows = activation[i * batch : (i + 1) * batch]
                given = cell.apply(rows)
                if given is not rows:
                    rows.copy_(given)

        return patch

    return [(point, hook(own)) for point, own in by_point.items()]


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Whether two logits are the same up to the rounding of another batch size."""
    wide, eps = wanted.abs().max(), torch.finfo(wanted.dtype).eps
    return bool((found - wanted).abs().max() <= wide * min(0.05, 1000 * eps))
