"""An experiment on the twin of a model: what is asked for, as tensors without values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensbridge.engines.nnsight.recorder import Recorder
from lensbridge.experiments.running import Running
from lensbridge.interventions.running import edited
from lensbridge.sweeps.result import PatchingResult


@dataclass(frozen=True, eq=False)
class RecordedRunning(Running):
    """An experiment whose passes are written down.

    Args:
        recorder: what writes them down.
        cells: the metrics of each cell of the sweep, once it was written down.
    """

    recorder: Recorder = field(kw_only=True)
    cells: list[dict[str, Tensor]] = field(default_factory=list, kw_only=True)

    @torch.no_grad()
    def _swept(self) -> PatchingResult | None:
        """Write down one pass for each cell."""
        given = self.experiment.sweep
        for cell in given.values() if isinstance(given, Mapping) else given or ():
            with edited(self.model, self.acting), edited(self.model, cell):
                logits = self.model.forward(self.inputs)
            self.cells.append(self._measured(logits))
        return None

    def _gradients(self) -> Any:
        with _differentiating(self.recorder):
            return super()._gradients()

    def _generated(self) -> tuple[Tensor | None, Any]:
        """The ids; they become text when they are known."""
        asked = self.experiment
        if asked.generate is None:
            return None, None
        said = {"interventions": asked.interventions, "return_type": "tokens", "verbose": False}
        return self.generate(self.inputs, **said, **asked.generate), None


@contextmanager
def _differentiating(recorder: Recorder) -> Iterator[None]:
    recorder.differentiates = recorder.differentiated = True
    try:
        yield
    finally:
        recorder.differentiates = False
