"""Sweeps that are scored on generated text: every cell continues the input, many in one batch."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import Metric
from lensbridge.patching.writing import Writing, Wrote
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.result import PatchingResult


def sweep_generated(
    model: HookedModel,
    base: Any,
    cells: Mapping[str, Any] | Sequence[Any],
    metric: "MetricFunction | Mapping[str, MetricFunction]",
    generate: Mapping[str, Any],
    reduce: Reduce,
    options: SweepOptions,
    baseline: bool,
) -> PatchingResult:
    """Continue an input once for each cell and measure the texts; see `sweep`.

    Raises:
        InputError: a cell, a metric or an option that does not fit.
        LensbridgeError: the model cannot generate.
    """
    metrics = Metrics.of(metric, reduce)
    for name, one in metrics.functions.items():
        if isinstance(one, Metric):
            raise InputError(
                f"The metric {name!r} is a metric of logits ({one!r}); with generate=... it is a "
                "function of one text that gives a number."
            )
    names = tuple(map(str, cells)) if isinstance(cells, Mapping) else None
    given = list(cells.values() if isinstance(cells, Mapping) else cells)
    if not given:
        raise InputError("cells is empty: there is nothing to run.")
    run = Writing.of(model, base, generate, options)
    listed = [_interventions(cell) for cell in given]
    for cell in listed:
        run.check(cell)
    wrote = run.all([*([[]] if baseline else []), *listed], partial(_measured, metrics))
    grid = Grid(("cell",), tuple((i,) for i in range(len(given))), names=names)
    return _assembled(run, wrote, metrics, grid, baseline)


def _interventions(cell: Any) -> list[Intervention]:
    """The interventions of a cell.

    Raises:
        InputError: it is something else.
    """
    several = list(cell) if isinstance(cell, list | tuple) else [cell]
    for one in several:
        if not isinstance(one, Intervention):
            raise InputError(
                "A cell of a sweep over generated texts is an intervention or a list of them, not "
                f"{one!r}. Replace and Swap write values, as a Cell does in a sweep over logits."
            )
    return several


def _assembled(
    run: Writing,
    wrote: Sequence[Wrote | None],
    metrics: Metrics,
    grid: Grid,
    baseline: bool,
) -> PatchingResult:
    """The values of the texts, and the texts."""
    nothing = torch.full((len(metrics.names), run.examples), torch.nan)
    values = torch.stack([nothing if one is None else one.values for one in wrote], dim=1)
    if metrics.reduce != "none":
        values = values.mean(-1)
    shown = [None if one is None else run.shown(one.texts) for one in wrote]
    plain, values = (values[:, 0], values[:, 1:]) if baseline else (None, values)
    why = "; ".join(dict.fromkeys(run.reasons))
    return PatchingResult(
        values=values if metrics.named else values[0],
        grid=grid,
        metric_names=metrics.names,
        reduced=metrics.reduce != "none",
        baseline=plain if plain is None or metrics.named else plain[0],
        has_metric_axis=metrics.named,
        partial=any(one is None for one in wrote),
        engine=f"one by one: {why}" if why else "batched",
        texts=shown[1:] if baseline else shown,
        baseline_texts=shown[0] if baseline else None,
    )


def _measured(metrics: Metrics, texts: list[str]) -> Tensor:
    """The values of texts. Shapes: `[metric, example]`"""
    rows = [[_number(name, fn, text) for text in texts] for name, fn in metrics.functions.items()]
    return torch.tensor(rows)


def _number(name: str, metric: MetricFunction, text: str) -> float:
    """The value of one text.

    Raises:
        InputError: it is no number.
    """
    value = metric(text)  # type: ignore[arg-type]
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The metric {name!r} gives a {type(value).__name__}; with generate=... it is a "
            "function of one text that gives a number."
        ) from error
