"""sweep_dataset: a patching sweep over many pairs of prompts, which can be resumed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.pair_values import Pair, PairValues, sweep_identity
from lensbridge.hooked_model import HookedModel
from lensbridge.patching.sweeping import sweep
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.result import PatchingResult


def sweep_dataset(
    model: HookedModel,
    pairs: Iterable[Sequence[Any]],
    cells: Any,
    metric: Callable[..., Any],
    out: str | PathLike[str] | None = None,
    *,
    identity: str | None = None,
    told: Callable[[int, int], None] | None = None,
) -> PatchingResult:
    """Patch clean activations into corrupted runs, for many pairs of prompts.

    Args:
        model: the model, in eval mode.
        pairs: `(clean, corrupted)` inputs, or more entries, which go to the metric.
        cells: a function of `lensbridge.patching` (`get_act_patch_resid_pre`, ...), or a list of
            `(point, index)`, an index as for `model.sweep`.
        metric: maps logits to a number; with a second parameter it is also given the pair.
        out: a folder in which the values of each pair are written as they are measured. If it has
            some of the same sweep, these pairs are not run again: of the same model, pairs, cells
            and metric. None: nothing is written.
        identity: a text by which the metric is recognised, for one that uses objects of which it
            cannot be told whether they changed. None: by its code and the values that it uses.
        told: called after each pair with its number and how many there are.

    Returns:
        The values of all cells and pairs, the pairs along the last axis: `result.mean()`,
        `result.stderr()` and `result.bootstrap_ci()` are over pairs.

    Shapes: `[*axes, pair]`

    Raises:
        InputError: there are no pairs, pairs whose grids differ in shape, the folder has another
            sweep, or the metric cannot be recognised.

    Example:
        >>> import lensbridge
        >>> from lensbridge.patching import get_act_patch_resid_pre
        >>> model = lensbridge.load("demo")
        >>> pairs = [("The Eiffel Tower is in the city of", "The Galata Tower is in the city of")]
        >>> paris = model.to_single_token(" Paris")
        >>> lensbridge.sweep_dataset(
        ...     model, pairs * 2, get_act_patch_resid_pre, lambda logits: logits[0, -1, paris]
        ... ).shape[-1]
        2
    """
    listed = [_checked(number, pair) for number, pair in enumerate(pairs)]
    if not listed:
        raise InputError("pairs is empty: there is nothing to sweep.")
    kept = PairValues()
    if out is not None:
        asked = sweep_identity(model, listed, cells, metric, identity)
        kept = PairValues.open(Path(out), asked)
    grid = _fill(kept, model, listed, cells, metric, told)
    grid = grid or _sweep(model, listed[0], cells, _of_pair(metric, listed[0])).grid
    values = torch.stack([kept.values[number] for number in range(len(listed))], dim=-1)
    return PatchingResult(values=values, grid=grid, metric_names=["metric"], reduced=False)


def _fill(
    kept: PairValues,
    model: HookedModel,
    pairs: Sequence[Pair],
    cells: Any,
    metric: Callable[..., Any],
    told: Callable[[int, int], None] | None,
) -> Grid | None:
    """Sweep the pairs that are not there yet; the grid of the last one, or None."""
    grid: Grid | None = None
    found: list[Tensor] = []
    for number, pair in enumerate(pairs):
        if number not in kept.values:
            result = _sweep(model, pair, cells, _of_pair(metric, pair))
            if result.partial:
                raise KeyboardInterrupt
            grid = result.grid
            kept.note(number, result.values)
        found.append(kept.values[number])
        _require_one_shape(found)
        if told is not None:
            told(number, len(pairs))
    return grid


def _checked(number: int, pair: Any) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) < 2:
        raise InputError(f"Pair {number} is {pair!r:.60}; a pair is (clean, corrupted, ...).")
    return tuple(pair)


def _of_pair(metric: Callable[..., Any], pair: Pair) -> Callable[[Tensor], Any]:
    needed = [
        one
        for one in inspect.signature(metric).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return (lambda logits: metric(logits, pair)) if len(needed) > 1 else metric


def _sweep(
    model: HookedModel, pair: Pair, cells: Any, metric: Callable[[Tensor], Any]
) -> PatchingResult:
    clean, corrupted = pair[:2]
    if callable(cells):
        _, cache = model.run_with_cache(clean, return_type=None)
        found = cells(model, corrupted, cache, metric, baseline=True)
        return found if isinstance(found, PatchingResult) else _as_result(found)
    names = [point for point, _ in cells]
    _, cache = model.run_with_cache(clean, names_filter=names, return_type=None)
    return sweep(model, corrupted, [(point, index, cache) for point, index in cells], metric)


def _as_result(values: Tensor) -> PatchingResult:
    rows = tuple((i,) for i in range(len(values)))
    return PatchingResult(values, Grid(("cell",), rows), ["metric"], True)


def _require_one_shape(found: Sequence[Tensor]) -> None:
    first, last = found[0].shape, found[-1].shape
    if last != first:
        raise InputError(
            f"Pair {len(found) - 1} has a grid of {list(last)} and pair 0 one of {list(first)}: "
            "pairs have prompts of equal length, or cells without positions."
        )
