"""A sweep over cells of one's own: `model.sweep(input, cells, metric)`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.patching.activation import Prepared, assemble
from lensbridge.patching.base import Base
from lensbridge.patching.cell import Cell, write
from lensbridge.patching.grid import Grid
from lensbridge.patching.metric import MetricFunction, Metrics, Reduce
from lensbridge.patching.result import PatchingResult
from lensbridge.patching.running import MAX_BATCH_TOKENS, Engine, entrances, run_cells

if TYPE_CHECKING:
    from lensbridge.model import LensModel


def sweep(
    model: "LensModel",
    input: Any,
    cells: Iterable[Cell],
    metric: "MetricFunction | Mapping[str, MetricFunction]",
    *,
    reduce: Reduce = "scalar",
    baseline: bool = False,
    exact: bool | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    verbose: bool = False,
) -> PatchingResult:
    """Run an input once for each cell, with that cell's value in its place.

    Args:
        model: the model, in eval mode.
        input: what is run, as for `forward`.
        cells: which activation, where in it, and the value.
        metric: maps logits to a number, or to one for each example; or several by name.
        reduce: "scalar" for a metric that gives one number; "mean" and "none" for one that gives a
            number for each example, to be averaged or kept.
        baseline: also keep the metric of the unpatched run.
        exact: True runs one forward pass for each cell; None runs cells of a layer in batches
            where the model allows; False insists on that.
        max_batch_tokens: how many positions such a batch may have.
        verbose: show a progress bar.

    Shapes: `[metric?, cell, batch?]`

    Raises:
        InputError: a cell or a metric that does not fit, before any cell runs.
    """
    metrics = Metrics.of(metric, reduce)
    named = [replace(cell, point=model.vocabulary.canonical(cell.point)) for cell in cells]
    if not named:
        raise InputError("There are no cells to run.")
    points = dict.fromkeys(cell.point for cell in named)
    base = Base.run(model, input, [*points, *entrances(model, named)])
    for cell in named:
        _check_place(base, cell)
    run = run_cells(base, named, metrics, Engine(exact, max_batch_tokens, verbose))
    grid = Grid(("cell",), tuple((i,) for i in range(len(named))))
    return assemble(Prepared(base, grid, named), metrics, run, baseline)


def _check_place(base: Base, cell: Cell) -> None:
    """Refuse a place that the activation lacks, or a value that does not fit it."""
    if cell.setter is not write:
        return
    try:
        place = base.cache[cell.point][cell.index]
    except (IndexError, TypeError) as error:
        axes = " ".join(base.axes(cell.point))
        raise InputError(
            f"{cell.point} has shape {base.shape(cell.point)} (axes {axes}) and no place "
            f"{cell.index}: {error}"
        ) from error
    if not isinstance(cell.value, Tensor):
        return
    try:
        cell.value.expand(place.shape)
    except RuntimeError as error:
        raise InputError(
            f"A value of shape {tuple(cell.value.shape)} does not fit {cell.point}{cell.index}, "
            f"which has {tuple(place.shape)}."
        ) from error
