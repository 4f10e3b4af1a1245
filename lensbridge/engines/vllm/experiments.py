"""Experiments and sweeps in vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lensbridge.engines.vllm.requests import ids_of
from lensbridge.errors import InputError, UnsupportedError
from lensbridge.experiments import Experiment, ExperimentResult
from lensbridge.experiments.running import Running
from lensbridge.interventions.callbacks import acting
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.running import edited
from lensbridge.patching.activation import Prepared, assemble
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.metric import Metrics
from lensbridge.sweeps.result import PatchingResult
from lensbridge.sweeps.running import Measured

LACKING = {"gradients": "vLLM computes no gradients"}


def run(model: Any, experiment: Experiment) -> ExperimentResult:
    """Run an experiment in vLLM.

    Raises:
        InputError: something that is no experiment.
        UnsupportedError: it asks for gradients.
    """
    if not isinstance(experiment, Experiment):
        raise InputError(f"run takes an Experiment, not a {type(experiment).__name__}.")
    experiment.require("the vLLM engine", LACKING)
    return replace(_Running(model, experiment, model.generate).result(), engine="vllm")


class _Running(Running):
    """An experiment whose sweep is a batch of vLLM's requests."""

    def _swept(self) -> PatchingResult | None:
        asked, model = self.experiment, self.model
        if asked.sweep is None:
            return None
        apart = any(one.reduce == "none" for one in asked.metrics.values())
        named = isinstance(asked.metric, Mapping)
        metric: Any = self.metrics if named else self.metrics["metric"]
        reduce = "none" if apart else "scalar"
        with edited(model, self.acting):
            return sweep(model, self.inputs, asked.sweep, metric, reduce=reduce, baseline=True)


def sweep(
    model: Any,
    base: Any,
    cells: Any,
    metric: Any,
    *,
    reduce: Any = "scalar",
    baseline: bool = False,
    exact: bool | None = None,
    max_batch_tokens: int | None = None,
    verbose: bool = False,
) -> PatchingResult:
    """Run an input once for each cell; see `VLLMModel.sweep`.

    Args:
        model: the model.
        base: the input.
        cells: interventions or lists of them; a mapping gives each a name.
        metric: maps logits to a number, or to one for each example; or several by name.
        reduce: as in `lensbridge.patching.sweep`.
        baseline: also keep the metric of the run without a cell.
        exact: nothing: each cell is a request of its own.
        max_batch_tokens: how many positions of logits are kept at a time; None: as many as vLLM
            runs in one pass.
        verbose: nothing.

    Raises:
        UnsupportedError: a cell that is no intervention.
        InputError: there is no cell.
    """
    metrics = Metrics.of(metric, reduce, model, base)
    names = tuple(map(str, cells)) if isinstance(cells, Mapping) else None
    given = [interventions_of(one) for one in _listed(cells)]
    if not given:
        raise InputError("cells is empty: there is nothing to run.")
    logits, cache = model.run_with_cache(base, names_filter=[])
    unpatched, prepared = BaseRun(model, base, logits, cache), model.prepare(base)
    most = max_batch_tokens or _budget(model)
    measured = []
    for some in _groups(given, max(1, most // ids_of(prepared).numel())):
        measured += [metrics.measure(found) for found in model.run_cells(prepared, some)]
    values = Measured(torch.stack(measured, dim=1), metrics.baseline(logits))
    grid = Grid(("cell",), tuple((i,) for i in range(len(given))), names=names)
    return assemble(Prepared(unpatched, grid, []), metrics, values, baseline)


def _listed(cells: Any) -> list[Any]:
    return list(cells.values() if isinstance(cells, Mapping) else cells)


def _budget(model: Any) -> int:
    return int(model.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens)


def _groups(cells: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(cells), size):
        yield cells[first : first + size]


def interventions_of(cell: Any) -> list[Intervention]:
    """The interventions of a cell.

    Raises:
        UnsupportedError: it is something else.
    """
    several = list(cell) if isinstance(cell, list | tuple) else [cell]
    if not all(isinstance(one, Intervention) for one in several):
        raise UnsupportedError(
            f"{cell!r} is no intervention. A sweep in vLLM has cells of interventions: in place of "
            "(point, index, value) write Replace(point, value, positions=...)."
        )
    return acting(several)
