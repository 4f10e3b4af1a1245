"""A sweep over any cells: `model.sweep(input, cells, metric)`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared as Input
from lensbridge.interventions.cells import InterventionEdit, cell_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.patching.activation import Prepared, assemble
from lensbridge.sweeps.alignment import check_fit, check_padding, clean_value, tokens_of
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.cell import Cell
from lensbridge.sweeps.edit import Edit, IndexedEdit, SetterEdit
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.measuring import measure
from lensbridge.sweeps.memory import check_cells
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.result import PatchingResult
from lensbridge.sweeps.running import entrances

CellLike: TypeAlias = "Cell | tuple[Any, Any, Any] | Intervention | InterventionEdit"
"""A cell, or `(point, index, value)`; an intervention, or what `cells_of` makes of it."""


def sweep(
    model: HookedModel,
    base: Any,
    cells: Iterable[CellLike],
    metric: "MetricFunction | Mapping[str, MetricFunction]",
    *,
    reduce: Reduce = "scalar",
    baseline: bool = False,
    exact: bool | None = None,
    max_batch_tokens: int | None = None,
    verbose: bool = False,
) -> PatchingResult:
    """Run an input once for each cell, with that cell's value in its place.

    Args:
        model: the model, in eval mode.
        base: the input that is run, as for `forward`.
        cells: which activation, where in it, and the value: `Cell`s, or the three as a tuple; or
            interventions (`lensbridge.interventions`), each at one point. If the value is a cache
            or a whole activation, its entries at the same place are taken.
        metric: maps logits to a number, or to one for each example; or several by name.
        reduce: "scalar" for a metric that gives one number; "mean" and "none" for one that gives a
            number for each example, to be averaged or kept.
        baseline: also keep the metric of the unpatched run.
        exact: True runs one forward pass for each cell; None runs cells in batches where the model
            allows it; False raises where it does not.
        max_batch_tokens: how many positions such a batch may have; None: as many as the free
            memory allows.
        verbose: show a progress bar with the time that is left.

    Shapes: `[metric?, cell, batch?]`

    Raises:
        InputError: a cell or a metric does not fit, or there is too little memory. This is checked
            before any cell runs.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> _, clean = model.run_with_cache("The Eiffel Tower is in the city of")
        >>> cells = [(("resid_pre", layer), (0, 2), clean) for layer in range(4)]
        >>> metric = lambda logits: logits[0, -1, model.to_single_token(" Paris")]
        >>> model.sweep("The Colosseum is in the city of", cells, metric).shape
        torch.Size([4])
    """
    metrics = Metrics.of(metric, reduce)
    if isinstance(cells, Cell):
        raise InputError("cells is a list of cells; for one, pass [cell].")
    given = list(cells)
    if not given:
        raise InputError("cells is empty: there is nothing to run.")
    check_cells(len(given))
    named = _named(model, base, given)
    points = dict.fromkeys(cell.point for cell in named)
    unpatched = BaseRun.run(model, base, [*points, *entrances(model, points)])
    placed = [_placed(unpatched, cell) for cell in named]
    options = SweepOptions(exact, max_batch_tokens, verbose)
    run = measure(unpatched, placed, metrics, options)
    grid = Grid(("cell",), tuple((i,) for i in range(len(placed))))
    return assemble(Prepared(unpatched, grid, placed), metrics, run, baseline)


def _named(model: HookedModel, input: Any, given: Sequence[CellLike]) -> list[Edit]:
    """The edits of cells, with canonical names.

    Raises:
        InputError: something that is no cell.
    """
    prepared: Input | None = None
    edits: list[Edit] = []
    for cell in given:
        if isinstance(cell, tuple | list) and len(cell) == 3:
            cell = Cell(*cell)
        if isinstance(cell, Cell):
            edits.append(cell.edit_at(model.vocabulary.canonical(cell.point)))
        elif isinstance(cell, InterventionEdit):
            edits.append(cell)
        else:
            prepared = prepared or model.prepare(input)
            edits.append(cell_of(model, cell, prepared))
    return edits


def _placed(base: BaseRun, edit: Edit) -> Edit:
    """An edit whose value is a tensor that fits the place.

    Raises:
        InputError: the activation lacks the place, or the value does not fit it.
        NotCachedError: the value is a cache that lacks the activation.
    """
    if not isinstance(edit, IndexedEdit | SetterEdit):
        return edit
    cached = isinstance(edit.value, Mapping)
    if cached:
        source = clean_value(edit.value, edit.point)
        check_fit(base, edit.point, source, tokens_of(edit.value))
        check_padding(base, edit.value)
        edit = replace(edit, value=source)
    if isinstance(edit, SetterEdit):
        return edit
    place = _at(base, edit, base.cache[edit.point])
    value, whole = _number(edit, place), base.shape(edit.point)
    if cached or (value.shape == whole and not _fits(value, place)):
        return replace(edit, value=_at(base, edit, value.expand(whole)))
    if not _fits(value, place):
        raise InputError(
            f"A value of shape {tuple(value.shape)} does not fit {edit.point}{edit.index}, "
            f"which has {tuple(place.shape)}."
        )
    return replace(edit, value=value)


def _number(edit: IndexedEdit, place: Tensor) -> Tensor:
    """The value of a cell as a tensor.

    Raises:
        InputError: it is neither a number nor a tensor.
    """
    try:
        return torch.as_tensor(edit.value, dtype=place.dtype, device=place.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The value of a cell is a number, a tensor, or a cache that has it; the cell at "
            f"{edit.point} has a {type(edit.value).__name__}."
        ) from error


def _fits(value: Tensor, place: Tensor) -> bool:
    """Whether a value can be written to a place."""
    try:
        value.expand(place.shape)
    except RuntimeError:
        return False
    return True


def _at(base: BaseRun, edit: IndexedEdit, activation: Tensor) -> Tensor:
    try:
        return activation[edit.index]
    except (IndexError, TypeError) as error:
        axes = " ".join(base.axes(edit.point))
        raise InputError(
            f"{edit.point} has shape {base.shape(edit.point)} (axes {axes}), and the index "
            f"{edit.index} does not fit it: {error}. An index begins with the batch axis."
        ) from error
