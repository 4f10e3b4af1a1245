"""PatchingResult: what a sweep measured, with statistics over examples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.sweeps.as_tensor import AsTensor
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.statistics import (
    Alternative,
    Statistic,
    bootstrap_interval,
    sign_flip_pvalue,
    standard_error,
)
from lensbridge.sweeps.table import TableMethods


@dataclass(frozen=True, eq=False)
class PatchingResult(TableMethods, AsTensor):
    """What a sweep measured. Torch and arithmetic take it as a tensor; its axes have names.

    Args:
        values: `[metric?, *axes, batch?]`, with a metric axis if metrics were named and a batch
            axis if examples were kept. NaN: there is no such cell, or it did not run.
        grid: the cells and the names of the axes.
        metric_names: names along the metric axis; `["metric"]` for one metric without a name.
        reduced: whether there is no batch axis.
        baseline: the metric of the unpatched run, `[metric?, batch?]`; None if not asked for.
        has_metric_axis: whether metrics were named.
        patch_type_names: the entries of the first axis of an `_every` result.
        partial: whether the sweep was interrupted, so that some cells did not run.
        engine: whether cells were run in batches, and if not, why.
        positions: the tokens of the input as labels of positions; None where columns are no
            positions of one text.
        texts: what each cell wrote, if the sweep generated texts: one for each example, or a text
            alone if the input was one; None for a cell that did not run.
        baseline_texts: the same of the run without edits.
    """

    values: Tensor
    grid: Grid
    metric_names: list[str]
    reduced: bool
    baseline: Tensor | None = None
    has_metric_axis: bool = False
    patch_type_names: list[str] | None = None
    partial: bool = False
    engine: str = "exact"
    positions: PositionLabels | None = None
    texts: "list[str | list[str] | None] | None" = None
    baseline_texts: "str | list[str] | None" = None

    @property
    def axis_names(self) -> list[str]:
        """Names of the swept axes; none if the cells were given as a list."""
        return [] if self.grid.axis_values is None else list(self.grid.axis_names)

    @property
    def index_df(self) -> Any:
        """A `pandas.DataFrame` with a row for each cell, in the order in which they ran.

        Raises:
            LensbridgeError: pandas is not installed; `grid.rows` does without.
        """
        return self.grid.frame()

    def __repr__(self) -> str:
        axes = ["metric"] * self.has_metric_axis + (self.axis_names or ["cell"])
        axes += ["batch"] * (not self.reduced)
        sizes = ", ".join(f"{a} {n}" for a, n in zip(axes, self.values.shape, strict=True))
        cut = ", interrupted: NaN where it did not run" if self.partial else ""
        return f"PatchingResult({sizes}; {', '.join(self.metric_names)}{cut})"

    def __getitem__(self, key: Any) -> Any:
        """One metric by its name, or the values at an index.

        Raises:
            InputError: no metric has this name.
        """
        return self._metric(key) if isinstance(key, str) else self.values[key]

    def _metric(self, name: str) -> "PatchingResult":
        if name not in self.metric_names:
            raise InputError(f"No metric is called {name!r}; there are {self.metric_names}.")
        if not self.has_metric_axis:
            return self
        i = self.metric_names.index(name)
        baseline = None if self.baseline is None else self.baseline[i]
        return replace(
            self,
            values=self.values[i],
            metric_names=[name],
            baseline=baseline,
            has_metric_axis=False,
        )

    # --- statistics --------------------------------------------------------------------------

    def mean(self) -> Tensor:
        """Mean over examples; the values themselves if they have no batch axis.

        Shapes: `[metric?, *axes]`
        """
        return self.values if self.reduced else self.values.mean(dim=-1)

    def stderr(self) -> Tensor:
        """Standard error of that mean.

        Shapes: `[metric?, *axes]`

        Raises:
            InputError: examples were not kept.
        """
        return standard_error(self._examples("stderr"))

    def effect(self) -> Tensor:
        """What each patch changes: the values minus the unpatched run's.

        Shapes: as `values`

        Raises:
            InputError: the sweep was run without `baseline=True`.
        """
        return self.values - self._beside_values(self._baseline("effect"))

    def normalized(self, clean_baseline: Tensor | float | Mapping[str, Any]) -> Tensor:
        """How far each patch moves the metric from the corrupted run's value to the clean run's.

        Args:
            clean_baseline: the same metrics of the clean run, in the shape of `baseline` or by
                name.

        Shapes: as `values`
        Units: 0 is the corrupted run, 1 the clean one; inf or NaN if the two are equal.

        Raises:
            InputError: the sweep was run without `baseline=True`, or the shapes differ.
        """
        corrupted = self._baseline("normalized")
        if isinstance(clean_baseline, Mapping):
            clean_baseline = self._by_name(clean_baseline)
        clean = torch.as_tensor(clean_baseline).detach().to(corrupted)
        if clean.shape != corrupted.shape:
            raise InputError(
                f"clean_baseline has shape {tuple(clean.shape)} and the baseline "
                f"{tuple(corrupted.shape)}. Pass the same metric of the clean run."
            )
        return self.effect() / self._beside_values(clean - corrupted)

    def _by_name(self, given: Mapping[str, Any]) -> Tensor:
        """Numbers by metric, in the shape of the baseline.

        Raises:
            InputError: a metric is missing.
        """
        lacking = [name for name in self.metric_names if name not in given]
        if lacking:
            raise InputError(f"clean_baseline lacks {', '.join(lacking)}; it has {list(given)}.")
        values = [torch.as_tensor(given[name]) for name in self.metric_names]
        return torch.stack(values) if self.has_metric_axis else values[0]

    def bootstrap_ci(
        self,
        n_resamples: int = 1000,
        seed: int = 0,
        *,
        confidence: float = 0.95,
        statistic: Statistic = "mean",
        of_effect: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The percentile bootstrap interval of each cell.

        Args:
            n_resamples: how often the examples are drawn again.
            seed: of the draws.
            confidence: the share of the resamples that the interval contains.
            statistic: what is computed of each resample.
            of_effect: take `effect()` instead of the values.

        Shapes: lower and upper end, each `[metric?, *axes]`

        Raises:
            InputError: examples were not kept.
        """
        values = self._examples("bootstrap_ci")
        data = self.effect() if of_effect else values
        return bootstrap_interval(data, n_resamples, seed, confidence, statistic)

    def permutation_pvalue(
        self,
        n_permutations: int = 1000,
        seed: int = 0,
        *,
        alternative: Alternative = "two-sided",
    ) -> Tensor:
        """The p-value of a sign-flip test: how likely a mean effect this large is if the sign of
        each example's effect is random.

        Exact for up to 12 examples, otherwise from `n_permutations` draws.

        Shapes: `[metric?, *axes]`

        Raises:
            InputError: examples were not kept, or the sweep was run without `baseline=True`.
        """
        self._examples("permutation_pvalue")
        return sign_flip_pvalue(self.effect(), n_permutations, seed, alternative)

    def _examples(self, what: str) -> Tensor:
        if self.reduced:
            raise InputError(f"{what} is over examples: run the sweep with reduce='none'.")
        return self.values

    def _baseline(self, what: str) -> Tensor:
        if self.baseline is None:
            raise InputError(f"{what} compares with the unpatched run: pass baseline=True.")
        return self.baseline

    def _beside_values(self, baseline: Tensor) -> Tensor:
        """A baseline with axes of 1 for the cells."""
        lead = int(self.has_metric_axis)
        cells = self.values.ndim - baseline.ndim
        return baseline.reshape(*baseline.shape[:lead], *[1] * cells, *baseline.shape[lead:])
