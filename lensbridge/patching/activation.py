"""Activation patching: a corrupted run with a clean activation at one place at a time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import AbsentPointError, InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.points.names import stack_of
from lensbridge.sweeps.alignment import (
    check_axes,
    check_fit,
    check_index,
    check_padding,
    clean_value,
    tokens_of,
)
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edit import Edit, Setter, SetterEdit
from lensbridge.sweeps.edits import Edits
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.measuring import measure
from lensbridge.sweeps.memory import check_cells
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.result import PatchingResult
from lensbridge.sweeps.running import Measured, entrances
from lensbridge.sweeps.setters import PUBLISHED

AXIS_LETTERS = {
    "pos": "pq",
    "head": "hg",
    "head_index": "hg",
    "dest_pos": "qp",
    "src_pos": "k",
    "neuron": "f",
}
"""The letters of the activation axis that an index axis counts (see `docs/points.md`)."""


def generic_activation_patch(
    model: HookedModel,
    corrupted_tokens: Any,
    clean_cache: Mapping[str, Tensor],
    patching_metric: "MetricFunction | Mapping[str, MetricFunction]",
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: Any = None,
    return_index_df: bool = False,
    *,
    reduce: Reduce = "scalar",
    baseline: bool = False,
    exact: bool | None = None,
    max_batch_tokens: int | None = None,
    verbose: bool = False,
) -> Any:
    """Run the corrupted input once for each cell of a grid, with a clean activation patched in.

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the corrupted input: whatever `forward` takes, also a mapping of ids and
            `attention_mask`.
        clean_cache: activations of the clean run, the patched ones among them.
        patching_metric: maps logits to a number, or to one for each example; or several by name.
        patch_setter: `(corrupted_activation, index, clean_activation)` -> the patched activation;
            `index` is the cell's row of numbers, the layer first.
        activation_name: short name ("resid_pre", "z"), the name in a layer ("mlp.hook_post"), or a
            point with `{i}` for the layer ("encoder.{i}.hook_resid_pre").
        index_axis_names: "layer", then the axes to go over in full: "pos", "head" (or
            "head_index"), "dest_pos", "src_pos", "neuron". Sizes are those of the activation: keys
            and values have an entry for each key/value head. Layers that lack the point are left
            out. Positions are columns of the batch, also where texts are padded.
        index_df: the cells instead, as a data frame or a list of rows of numbers, with the layer
            first. The result then has one axis.
        return_index_df: also return the data frame of the cells; the result is then a tensor.
        reduce: "scalar" for a metric that gives one number; "mean" and "none" for one that gives a
            number for each example, to be averaged or kept.
        baseline: also keep the metric of the unpatched run.
        exact: True runs one forward pass for each cell; None runs cells in batches where the model
            allows it; False raises where it does not.
        max_batch_tokens: how many positions such a batch may have; None: as many as the free
            memory allows.
        verbose: show a progress bar with the time that is left.

    Returns:
        A tensor with an axis for each name; a `PatchingResult` for named metrics, `reduce="none"`,
        `baseline=True`, or after an interrupt (Ctrl-C), which leaves NaN for cells that did not
        run.

    Raises:
        InputError: a metric, index or clean activation that does not fit, a model in training
            mode, or too little memory. All of this is checked before the first cell runs.
        AbsentPointError: no layer of this model has the activation.
        NotCachedError: the clean cache lacks it.

    Source: the signature is that of TransformerLens's `generic_activation_patch`.
    """
    metrics = Metrics.of(patching_metric, reduce, model, corrupted_tokens)
    sweep = Sweep(model, activation_name, patch_setter, metrics)
    wants_result = sweep.metrics.named or reduce == "none" or baseline
    if return_index_df and wants_result:
        raise InputError(
            "return_index_df is for results that are a tensor; this one is a PatchingResult, which "
            "has index_df."
        )
    prepared = sweep.prepare(corrupted_tokens, clean_cache, index_axis_names, index_df)
    options = SweepOptions(exact, max_batch_tokens, verbose)
    run = measure(prepared.base, prepared.cells, sweep.metrics, options)
    result = assemble(prepared, sweep.metrics, run, baseline)
    if wants_result or run.partial:
        return result
    return (result.values, result.index_df) if return_index_df else result.values


@dataclass(frozen=True)
class Prepared:
    """A sweep that was checked and is ready to run."""

    base: BaseRun
    grid: Grid
    cells: Sequence[Edit | Edits]


@dataclass(frozen=True)
class Sweep:
    """A sweep over one activation of every layer, which a setter patches.

    Raises:
        InputError: the setter is not a function.
    """

    model: HookedModel
    activation: str
    setter: Setter
    metrics: Metrics

    def __post_init__(self) -> None:
        if not callable(self.setter):
            raise InputError(
                "patch_setter is a function of (corrupted_activation, index, clean_activation), "
                f"not a {type(self.setter).__name__}."
            )

    def prepare(
        self,
        corrupted: Any,
        clean: Mapping[str, Tensor],
        axis_names: Sequence[str] | None,
        rows: Any,
    ) -> Prepared:
        """Check everything and run the corrupted input once."""
        if (axis_names is None) == (rows is None):
            raise InputError("Pass either index_axis_names or index_df, to say which cells to run.")
        listed = None if rows is None else Grid.listed(rows)
        names = tuple(axis_names or ()) if listed is None else listed.axis_names
        if names[:1] != ("layer",):
            raise InputError(f"The first axis of an index is 'layer'; got {names}.")
        points = self._points() if listed is None else self._points_of(listed)
        sources = {layer: clean_value(clean, point) for layer, point in points.items()}
        starts = entrances(self.model, points.values())
        base = BaseRun.run(self.model, corrupted, [*points.values(), *starts])
        axes = PUBLISHED.get(self.setter)
        if axes is not None:
            check_padding(base, clean)
            for layer, point in points.items():
                check_axes(base, point, axes)
                check_fit(base, point, sources[layer], tokens_of(clean))
        grid = listed or self._grid(base, points, names)
        if axes is not None:
            for row in grid.rows:
                check_index(base, points[row[0]], axes, names, row)
        indexed = () if axes is None else axes.indexed
        cells = [
            SetterEdit(points[row[0]], list(row), sources[row[0]], self.setter, indexed)
            for row in grid.rows
        ]
        return Prepared(base, grid, cells)

    def _point(self, layer: int) -> str:
        name, canonical = self.activation, self.model.vocabulary.canonical
        if "{i}" in name:
            return canonical(name.replace("{i}", str(layer)))
        if stack_of(name):
            raise InputError(
                f"{name} is a point of one layer, but the layer comes from the index. Write "
                f"{re.sub(r'[.][0-9]+[.]', '.{i}.', name)!r}, or the short name."
            )
        if "." in name:
            return canonical(f"{self.model.native.main.prefix}.{layer}.{name}")
        point = canonical((name, layer))
        attn = self.model.native.blocks[layer].attn
        if name == "k" and attn is not None and attn.latent is not None:
            # before rotary all heads share a part of the key; after it each head has its own
            return canonical(("rot_k", layer))
        return point

    def _points_of(self, listed: Grid) -> dict[int, str]:
        return {layer: self._point(layer) for layer, *_ in listed.rows}

    def _points(self) -> dict[int, str]:
        """The point in each layer that has it.

        Raises:
            AbsentPointError: no layer has it.
        """
        first = self.activation.replace("{i}", "0") if "{i}" in self.activation else ""
        depths = self.model.vocabulary.depths
        depth = depths.get(stack_of(first)) or next(iter(depths.values()))
        found, missing = {}, None
        for layer in range(depth):
            try:
                found[layer] = self._point(layer)
            except AbsentPointError as error:
                missing = error
        if missing is not None and not found:
            raise missing
        return found

    def _grid(self, base: BaseRun, points: Mapping[int, str], names: Sequence[str]) -> Grid:
        sizes = {layer: self._sizes(base, point, names[1:]) for layer, point in points.items()}
        check_cells(sum(map(prod, sizes.values())))
        widest = [max(size) for size in zip(*sizes.values(), strict=True)]
        grid = Grid.over(names, [points, *map(range, widest)])
        there = [
            row
            for row in grid.rows
            if all(i < n for i, n in zip(row[1:], sizes[row[0]], strict=True))
        ]
        return Grid(grid.axis_names, tuple(there), grid.axis_values)

    def _sizes(self, base: BaseRun, point: str, names: Sequence[str]) -> list[int]:
        axes, shape = base.axes(point), base.shape(point)
        sizes = []
        for name in names:
            letters = AXIS_LETTERS.get(name)
            if letters is None:
                raise InputError(
                    f"There is no index axis {name!r}; there are {list(AXIS_LETTERS)}."
                )
            place = next((i for i, letter in enumerate(axes) if letter in letters), None)
            if place is None:
                raise InputError(
                    f"{point} has no axis for {name!r}: its axes are {' '.join(axes)}."
                )
            sizes.append(shape[place])
        return sizes


def assemble(prepared: Prepared, metrics: Metrics, run: Measured, baseline: bool) -> PatchingResult:
    """The measured values on the axes of the grid, with examples averaged if that was asked for."""
    grid, values = prepared.grid, run.values
    if grid.axis_values is not None:
        flat = values
        values = flat.new_full((len(flat), *grid.shape, *flat.shape[2:]), torch.nan)
        for i, row in enumerate(grid.rows):
            place: Any = (slice(None), *grid.place(row))
            values[place] = flat[:, i]
    unpatched = run.baseline if baseline else None
    if metrics.reduce == "mean":
        values = values.mean(-1)
        unpatched = None if unpatched is None else unpatched.mean(-1)
    return PatchingResult(
        values=values if metrics.named else values[0],
        grid=grid,
        metric_names=metrics.names,
        reduced=metrics.reduce != "none",
        baseline=unpatched if unpatched is None or metrics.named else unpatched[0],
        has_metric_axis=metrics.named,
        partial=run.partial,
        engine=run.engine,
        positions=prepared.base.positions,
    )
