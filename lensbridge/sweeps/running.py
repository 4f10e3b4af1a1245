"""How the cells of a sweep are run: one forward pass for each, or many in a batch.

Both give the same numbers up to rounding. The first is the definition; `batch.py` has the second.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.points.names import layer_of, stack_of
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.batch import MOST_CONTROLS, CellBatch
from lensbridge.sweeps.context import SweepContext
from lensbridge.sweeps.edit import Edit
from lensbridge.sweeps.edits import Edits, points_of
from lensbridge.sweeps.metric import Metrics
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.prefix import prefix_of
from lensbridge.sweeps.progress_bar import ProgressBar
from lensbridge.sweeps.reads import positions_read
from lensbridge.sweeps.rows import started_late

_PLAIN_INPUT = frozenset({"input_ids", "attention_mask"})


@dataclass
class Measured:
    """What a sweep measured.

    Shapes: values `[metric, cell]` or `[metric, cell, batch]`, NaN where a cell did not run.

    Args:
        values: the metrics of each cell.
        baseline: those of the unpatched run, `[metric]` or `[metric, batch]`.
        partial: whether the sweep was interrupted.
        reasons: why cells were run one by one instead of in batches.
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


def run_cells(
    base: BaseRun, cells: Sequence[Edits], metrics: Metrics, options: SweepOptions, max_tokens: int
) -> Measured:
    """Measure every cell. Ctrl-C ends the sweep and leaves NaN for the cells that did not run.

    Args:
        base: the unpatched run.
        cells: what is patched in each run.
        metrics: what is measured.
        options: how to run them.
        max_tokens: positions in a batch, as `max_batch_tokens` and the memory allow.

    Raises:
        InputError: a metric that does not fit, or `exact=False` for cells that cannot be run in
            batches.
    """
    baseline = metrics.baseline(base.logits)
    shape = (baseline.shape[0], len(cells), *baseline.shape[1:])
    run = Measured(baseline.new_full(shape, torch.nan), baseline)
    meter = ProgressBar(len(cells), options.verbose)
    try:
        with torch.no_grad():
            _Running(base, cells, metrics, options, max_tokens, run, meter).all()
    except KeyboardInterrupt:
        run.partial = True
    finally:
        meter.close()
    return run


@dataclass(frozen=True)
class _Running:
    """The cells of a sweep, and what was measured of them so far."""

    base: BaseRun
    cells: Sequence[Edits]
    metrics: Metrics
    options: SweepOptions
    max_tokens: int
    run: Measured
    meter: ProgressBar

    def all(self) -> None:
        """Run every cell, in batches where that can be done."""
        if self.options.exact:
            self.run.reasons.append("asked for")
            self._one_by_one(range(len(self.cells)))
            return
        by_point = {point: why_single(self.base, point) for point in points_of(self.cells)}
        reasons = [[by_point[point] for point in cell.points] for cell in self.cells]
        why = [next((one for one in some if one is not None), None) for some in reasons]
        self.run.reasons += [reason for reason in by_point.values() if reason is not None]
        self._refuse_single()
        together = [i for i, reason in enumerate(why) if reason is None]
        if together:
            self._one_by_one(self._together(together))
        self._one_by_one(i for i, reason in enumerate(why) if reason is not None)

    def _keep(self, i: int, logits: Tensor) -> None:
        self.run.values[:, i] = self.metrics.measure(logits)
        self.meter.done()

    def _one_by_one(self, indices: Iterable[int]) -> None:
        for i in indices:
            self._keep(i, self.base.patched(self.cells[i]))

    def _refuse_single(self) -> None:
        if self.options.exact is False and self.run.reasons:
            raise InputError(
                f"These cells cannot be run in batches: {self.run.reasons[0]}. Pass exact=True."
            )

    def _together(self, indices: Sequence[int]) -> Iterator[int]:
        """Run cells in batches; yields those that have to be run one by one."""
        base = self.base
        prefix = prefix_of(base)
        if isinstance(prefix, str):
            getLogger(__name__).debug("Rows hold every position: %s.", prefix)
        reads = positions_read(self.metrics, base.logits)
        cells = [self.cells[i] for i in indices]
        context = SweepContext.of(base, None if isinstance(prefix, str) else prefix, reads, cells)
        active = []
        for i in indices:
            if context.is_too_late(self.cells[i]) or _changes_nothing(base, self.cells[i]):
                self._keep(i, base.logits)
            else:
                active.append(i)
        for group in _groups(context, self.cells, active, self.max_tokens):
            logits = self._batched(context, [self.cells[i] for i in group])
            if isinstance(logits, str):
                self.run.reasons.append(logits)
                self._refuse_single()
                yield from group
                continue
            for i, logits_of in zip(group, logits, strict=True):
                self._keep(i, logits_of())

    def _batched(
        self, context: SweepContext, cells: Sequence[Edits]
    ) -> list[Callable[[], Tensor]] | str:
        """Logits of cells, with the prefix reused, else without; or why neither can be done."""
        whole = SweepContext.of(context.base, None, context.reads, cells)
        layer = min(cell.layer for cell in cells)
        progress = partial(self.meter.under_way, len(cells))
        for attempt in [context, whole] if context.prefix else [whole]:
            logits = started_late(layer, CellBatch(attempt, cells, progress).run)
            if not isinstance(logits, str):
                break
        return logits


def _groups(
    context: SweepContext, cells: Sequence[Edits], indices: Sequence[int], max_tokens: int
) -> Iterator[list[int]]:
    """Cells that are run in one batch, with room for its control rows."""
    starts = {i: context.start(cells[i]) for i in indices}
    group: list[int] = []
    places = set[int]()
    for i in sorted(indices, key=lambda i: starts[i]):
        places.add(starts[i])
        rows = len(group) + 1 + min(MOST_CONTROLS, len(places))
        if group and rows * context.base.batch * (context.end - starts[group[0]]) > max_tokens:
            yield group
            group, places = [], {starts[i]}
        group.append(i)
    if group:
        yield group


def _changes_nothing(base: BaseRun, cell: Edits) -> bool:
    """Whether a cell writes what is there already, as where two prompts begin alike."""
    return all(_leaves(edit, base.cache[edit.point]) for edit in cell)


def _leaves(edit: Edit, there: Tensor) -> bool:
    return torch.equal(edit.apply(there.clone()), there)


def entrances(model: HookedModel, points: Iterable[str]) -> list[str]:
    """The streams before the layers where edits of these points start, and before the last layer;
    the base run has to keep them. They are of the main stack.
    """
    prefix = model.native.main.prefix
    layers = dict.fromkeys(layer_of(point) for point in points if stack_of(point) == prefix)
    if layers:
        layers[len(model.native.blocks) - 1] = None
    return [f"{prefix}.{layer}.hook_resid_pre" for layer in layers]


def why_single(base: BaseRun, point: str) -> str | None:
    """Why an edit of a point cannot be run in a batch that starts at its layer; None if it can.

    Args:
        base: the unpatched run.
        point: what is edited.

    Interventions of a context that act on each row by itself are no reason: they act in the batch
    too, and its control rows show that they do so rightly.
    """
    native, engine = base.model.native, base.model.engine
    if native.is_encoder_decoder:
        return "an encoder-decoder cannot start at a layer"
    if not engine.is_idle and not engine.works_by_row:
        return "other hooks are on the model, and may act on earlier layers or on the batch"
    if any(block.repeat is not None for block in native.blocks):
        return "its layers share modules"
    if isinstance(base.input, Mapping) and not set(base.input) <= _PLAIN_INPUT:
        return "the input has more than ids and a mask"
    mask = base.cache.attention_mask
    if base.cache.tokens is None or (mask is not None and mask.ndim != 2):
        return "the input has no ids, or a mask of another form than [batch, pos]"
    if stack_of(point) != native.main.prefix:
        return "a point outside the layers of the main stack"
    if base.axes(point)[0] != "b":
        return f"{point} has no batch axis"
    return None
