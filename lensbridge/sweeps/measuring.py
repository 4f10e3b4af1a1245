"""Measuring: cells are run within memory, what a metric came to lack is computed, and a sweep that
had to go slowly says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from logging import getLogger
from math import prod

import torch

from lensbridge.errors import InputError
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.cell import Cell
from lensbridge.sweeps.memory import batch_tokens, check_values
from lensbridge.sweeps.metric import Metrics
from lensbridge.sweeps.running import Engine, Measured, run_cells

_ASKED = "asked for"


@dataclass(frozen=True)
class Way:
    """How a user wants cells to be run.

    Args:
        exact: as in `Engine`.
        max_batch_tokens: as in `Engine`; None: by the memory that is free.
        verbose: whether to show a progress bar.
    """

    exact: bool | None = None
    max_batch_tokens: int | None = None
    verbose: bool = False

    def run(self, base: BaseRun, cells: Sequence[Cell], metrics: Metrics) -> Measured:
        """Measure every cell.

        Raises:
            InputError: a metric that does not fit, more than memory holds, or `exact=False` for
                cells that cannot be run in batches.
        """
        check_values(base, len(cells), metrics)
        most = batch_tokens(base, self.max_batch_tokens)
        tight = 0 < most < 2 * prod(base.logits.shape[:2])  # beside a cell goes the unpatched run
        why = f"max_batch_tokens={most} has room for one run at a time" if tight else None
        if why and self.exact is False:
            raise InputError(f"These cells cannot be run in batches: {why}. Pass exact=True.")
        engine = Engine(True if why else self.exact, most, self.verbose)
        run = run_cells(base, cells, metrics, engine)
        if why and not self.exact:
            run.reasons[:] = [why]
        if not (engine.exact or run.partial):
            _fill(base, cells, metrics, run)
        for reason in dict.fromkeys(run.reasons):
            if reason != _ASKED:
                _say(type(base.model.hf_model).__name__, reason)
        return run


def _fill(base: BaseRun, cells: Sequence[Cell], metrics: Metrics, run: Measured) -> None:
    """Run cells again whose metric is NaN: it may have read logits that were left out.

    What a metric reads is found out on the unpatched run, and one that decides by its logits can
    read elsewhere in a patched one.
    """
    lacking = run.values.isnan().flatten(2).any(-1) if run.values.ndim > 2 else run.values.isnan()
    try:
        with torch.no_grad():
            for i in lacking.any(0).nonzero().flatten().tolist():
                run.values[:, i] = metrics.measure(base.patched([cells[i]]))
                if not run.values[:, i].isnan().any():
                    run.reasons.append("the metric reads other positions when cells are patched")
    except KeyboardInterrupt:
        run.partial = True


@cache
def _say(model: str, reason: str) -> None:
    """Once for each reason; `PatchingResult.engine` has it every time."""
    getLogger(__name__).warning("%s: cells of this sweep run one by one: %s.", model, reason)
