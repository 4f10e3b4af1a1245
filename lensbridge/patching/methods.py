"""Methods of `LensModel` for sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lensbridge.hooked_model import HookedModel
from lensbridge.patching.sweeping import CellLike, sweep
from lensbridge.sweeps.result import PatchingResult


class SweepMethods(HookedModel):
    """Sweeps: one input is run many times, each time with one edit."""

    def sweep(
        self,
        base: Any,
        cells: Iterable[CellLike] | Mapping[str, CellLike],
        metric: Any,
        **options: Any,
    ) -> PatchingResult:
        """Run an input once for each cell, with that cell's value in its place.

        Args:
            base: the input that is run, as for `forward`.
            cells: `lensbridge.patching.Cell`s or tuples (site, slice, source): which activation,
                where in it, and the value (or a cache that has it); or interventions. A list of
                these is one cell, and a mapping names the cells.
            metric: maps logits to a number, or to one for each example; or several by name. With
                `generate`, it maps a text to a number.
            options: `reduce`, `baseline`, `exact`, `max_batch_tokens`, `verbose` and `generate` of
                `lensbridge.patching.sweep`.

        Shapes: `[metric?, cell, batch?]`

        Raises:
            InputError: a cell or a metric does not fit. This is checked before any cell runs.
        """
        return sweep(self, base, cells, metric, **options)
