"""Sweeps as a model offers them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lensbridge.hooked_model import LensModel
    from lensbridge.patching import PatchingResult
    from lensbridge.patching.sweeping import CellLike


class SweepMethods:
    """Runs of one input with one change each."""

    def sweep(
        self,
        base: Any,
        cells: "Iterable[CellLike]",
        metric: Any,
        **options: Any,
    ) -> "PatchingResult":
        """Run an input once for each cell, with that cell's value in its place.

        Args:
            base: the input that is run, as for `forward`.
            cells: `lensbridge.patching.Cell`s or (site, slice, source): which activation, where in
                it, and the value (or a cache that has it); or `lensbridge.interventions`.
            metric: maps logits to a number, or to one for each example; or several by name.
            options: `reduce`, `baseline`, `exact`, `max_batch_tokens` and `verbose` of
                `lensbridge.patching.sweep`.

        Shapes: `[metric?, cell, batch?]`

        Raises:
            InputError: a cell or a metric that does not fit, before any cell runs.
        """
        from lensbridge.patching import sweep

        return sweep(cast("LensModel", self), base, cells, metric, **options)
