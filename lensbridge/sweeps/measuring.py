"""Measuring: run cells in batches that fit into memory, compute logits that a metric turns out to
need, and log why a sweep had to run its cells one by one.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from logging import getLogger
from math import prod

import torch

from lensbridge.errors import InputError
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edit import Edit
from lensbridge.sweeps.edits import Edits
from lensbridge.sweeps.memory import batch_tokens, check_values
from lensbridge.sweeps.metric import Metrics
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.running import Measured, run_cells

_ASKED = "asked for"


def measure(
    base: BaseRun, given: Sequence[Edit | Edits], metrics: Metrics, options: SweepOptions
) -> Measured:
    """Run every cell and measure it.

    Args:
        base: the unpatched run.
        given: what each run changes.
        metrics: what is measured.
        options: how to run the cells.

    Raises:
        InputError: a metric that does not fit, more than memory holds, or `exact=False` for cells
            that cannot be run in batches.
    """
    cells = [Edits.of(one) for one in given]
    check_values(base, len(cells), metrics)
    most = batch_tokens(base, options.max_batch_tokens)
    if most < 1:
        raise InputError(f"max_batch_tokens={most}: no batch has fewer than 1 position.")
    tight = most < 2 * prod(base.logits.shape[:2])  # a cell and a control row
    why = f"max_batch_tokens={most} has room for one run at a time" if tight else None
    if why and options.exact is False:
        raise InputError(f"These cells cannot be run in batches: {why}. Pass exact=True.")
    exact = True if why else options.exact
    run = run_cells(base, cells, metrics, replace(options, exact=exact), most)
    if why and not options.exact:
        run.reasons[:] = [why]
    if not (exact or run.partial):
        _fill(base, cells, metrics, run)
    for reason in dict.fromkeys(run.reasons):
        if reason != _ASKED:
            _say(type(base.model.hf_model).__name__, reason)
    return run


def _fill(base: BaseRun, cells: Sequence[Edits], metrics: Metrics, run: Measured) -> None:
    """Run cells again whose metric is NaN: it may have read logits that were left out.

    Which positions a metric reads is found out on the unpatched run. A metric that chooses them by
    the logits can read others in a patched run.
    """
    lacking = run.values.isnan().flatten(2).any(-1) if run.values.ndim > 2 else run.values.isnan()
    try:
        with torch.no_grad():
            for i in lacking.any(0).nonzero().flatten().tolist():
                run.values[:, i] = metrics.measure(base.patched(cells[i]))
                if not run.values[:, i].isnan().any():
                    run.reasons.append("the metric reads other positions when cells are patched")
    except KeyboardInterrupt:
        run.partial = True


@cache
def _say(model: str, reason: str) -> None:
    """Log a reason once for each model class; `PatchingResult.engine` always has it."""
    getLogger(__name__).warning("%s: cells of this sweep run one by one: %s.", model, reason)
