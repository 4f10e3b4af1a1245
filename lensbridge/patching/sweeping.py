"""A sweep over any cells: `model.sweep(input, cells, metric)`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared as Input
from lensbridge.interventions.cells import InterventionEdit, edits_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.patching.activation import Prepared, assemble
from lensbridge.patching.generated import sweep_generated
from lensbridge.sweeps.alignment import check_fit, check_padding, clean_value, tokens_of
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.cell import Cell
from lensbridge.sweeps.edit import Edit, IndexedEdit, SetterEdit
from lensbridge.sweeps.edits import Edits, points_of
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.measuring import measure
from lensbridge.sweeps.memory import check_cells
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.result import PatchingResult
from lensbridge.sweeps.running import entrances

CellLike: TypeAlias = (
    "Cell | tuple[Any, Any, Any] | Intervention | InterventionEdit | Sequence[CellLike]"
)
"""A cell, or `(point, index, value)`; an intervention, or what `cells_of` makes of it; or a list of
these, which act together in one run."""


def sweep(
    model: HookedModel,
    base: Any,
    cells: "Iterable[CellLike] | Mapping[str, CellLike]",
    metric: "MetricFunction | Mapping[str, MetricFunction]",
    *,
    reduce: Reduce = "scalar",
    baseline: bool = False,
    exact: bool | None = None,
    max_batch_tokens: int | None = None,
    verbose: bool = False,
    generate: Mapping[str, Any] | None = None,
) -> PatchingResult:
    """Run an input once for each cell, with that cell's value in its place.

    Args:
        model: the model, in eval mode.
        base: the input that is run, as for `forward`.
        cells: which activation, where in it, and the value: `Cell`s, or the three as a tuple; or
            interventions (`lensbridge.interventions`). A list of these is one cell: they act
            together in one run, at one point in their order. A mapping gives each cell a name. If
            the value is a cache or a whole activation, its entries at the same place are taken.
        metric: maps logits to a number, or to one for each example; or several by name.
        reduce: "scalar" for a metric that gives one number; "mean" and "none" for one that gives a
            number for each example, to be averaged or kept.
        baseline: also keep the metric of the unpatched run.
        exact: True runs one forward pass for each cell; None runs cells in batches where the model
            allows it; False raises where it does not.
        max_batch_tokens: how many positions such a batch may have; None: as many as the free
            memory allows.
        verbose: show a progress bar with the time that is left.
        generate: options of `model.generate`, such as `{"max_new_tokens": 8}`: each cell, then an
            intervention or a list of them, continues the input, and the metric is a function of one
            text that gives a number. Several texts are averaged but for `reduce="none"`. The result
            has the `texts`, as `model.generate` gives them; `"skip_prompt": True` leaves the prompt
            out. The likeliest tokens are taken; with `"do_sample": True` each cell draws from the
            same `"seed"` (0), so that it writes what it writes alone.

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

        Windows of two layers:

        >>> from lensbridge.interventions import Zero
        >>> windows = [[Zero(("attn_out", i)), Zero(("attn_out", i + 1))] for i in range(3)]
        >>> model.sweep("The Colosseum is in the city of", windows, metric).shape
        torch.Size([3])
    """
    if isinstance(cells, Cell | Intervention):
        raise InputError("cells is a list of cells; for one, pass [cell].")
    if not isinstance(cells, Iterable):
        raise InputError(f"cells is a list of cells, not a {type(cells).__name__}.")
    options = SweepOptions(exact, max_batch_tokens, verbose)
    if generate is not None:
        listed = cells if isinstance(cells, Mapping) else list(cells)
        return sweep_generated(model, base, listed, metric, generate, reduce, options, baseline)
    metrics = Metrics.of(metric, reduce, model, base)
    names = tuple(map(str, cells)) if isinstance(cells, Mapping) else None
    given = list(cells.values() if isinstance(cells, Mapping) else cells)
    if not given:
        raise InputError("cells is empty: there is nothing to run.")
    check_cells(len(given))
    reader = _Reader(model, base)
    named = [reader.edits(cell) for cell in given]
    starts = entrances(model, [cell.first_point for cell in named if cell.each])
    unpatched = BaseRun.run(model, base, [*points_of(named), *starts])
    placed = [Edits(tuple(_placed(unpatched, edit) for edit in cell)) for cell in named]
    run = measure(unpatched, placed, metrics, options)
    grid = Grid(("cell",), tuple((i,) for i in range(len(placed))), names=names)
    return assemble(Prepared(unpatched, grid, placed), metrics, run, baseline)


@dataclass
class _Reader:
    """Reads cells as a user writes them.

    Args:
        model: the model.
        input: what is swept.
    """

    model: HookedModel
    input: Any

    @cached_property
    def _prepared(self) -> Input:
        return self.model.prepare(self.input)

    def edits(self, cell: Any) -> Edits:
        """The edits of a cell, with canonical names.

        Raises:
            InputError: something that is no cell.
        """
        several = is_several(cell)
        parts = cell if several else [cell]
        return Edits(tuple(edit for part in parts for edit in self._of_one(part, several)))

    def _of_one(self, part: Any, several: bool) -> Sequence[Edit]:
        if isinstance(part, tuple | list) and len(part) == 3 and not is_several(part):
            part = Cell(*part)
        if isinstance(part, Cell):
            return [part.edit_at(self.model.vocabulary.canonical(part.point))]
        if isinstance(part, InterventionEdit):
            return [part]
        if isinstance(part, Intervention):
            return edits_of(self.model, part, self._prepared, several)
        raise InputError(
            f"{part!r} is no cell. Pass a Cell, a tuple (site, slice, source), an intervention, or "
            "a list of these."
        )


def is_several(cell: Any) -> bool:
    """Whether a cell is a list of edits, which act together in one run."""
    return isinstance(cell, list | tuple) and all(map(_is_one, cell))


def _is_one(part: Any) -> bool:
    """Whether something is one edit; three things are if they begin with the name of a point."""
    if isinstance(part, Cell | Intervention | InterventionEdit):
        return True
    if not isinstance(part, list | tuple) or len(part) != 3:
        return False
    name = part[0][0] if isinstance(part[0], tuple) and part[0] else part[0]
    return isinstance(name, str)


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
    except (IndexError, TypeError, RuntimeError, ValueError) as error:
        axes = " ".join(base.axes(edit.point))
        raise InputError(
            f"{edit.point} has shape {base.shape(edit.point)} (axes {axes}), and the index "
            f"{edit.index} does not fit it: {error}. An index begins with the batch axis."
        ) from error
