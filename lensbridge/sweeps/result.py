"""PatchingResult: what a sweep measured, with statistics over examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.sweeps.as_tensor import AsTensor
from lensbridge.sweeps.grid import Grid, pandas
from lensbridge.sweeps.statistics import (
    Alternative,
    Statistic,
    bootstrap_interval,
    sign_flip_pvalue,
    standard_error,
)
from lensbridge.viz import Drawn, Heatmap
from lensbridge.viz.drawing import heatmap_of
from lensbridge.viz.heatmap import Digits

POSITION_AXES = ("pos", "dest_pos", "src_pos")
"""The axes that count positions."""


@dataclass(frozen=True, eq=False)
class PatchingResult(Drawn, AsTensor):
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

    # --- tables and pictures -----------------------------------------------------------------

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each metric, cell and example.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return pandas().DataFrame(list(self._records()))

    def _records(self) -> Iterator[dict[str, Any]]:
        values, grid = self.values.detach().cpu(), self.grid
        values = values if self.has_metric_axis else values.unsqueeze(0)
        values = values.unsqueeze(-1) if self.reduced else values
        for metric, table in zip(self.metric_names, values, strict=True):
            for i, row in enumerate(grid.rows):
                place = (i,) if grid.axis_values is None else grid.place(row)
                about = {"metric": metric, **self._named(row)}
                if grid.names is not None:
                    about["name"] = grid.names[i]
                texts = self._texts_of(i)
                for example, value in enumerate(table[place].tolist()):
                    kept: dict[str, Any] = {} if self.reduced else {"example": example}
                    wrote = {} if texts is None else {"text": texts[example]}
                    yield {**about, **kept, **wrote, "value": value}

    def _texts_of(self, cell: int) -> list[str] | None:
        """What a cell wrote for each row of a table; None if there is no text for each."""
        found = None if self.texts is None else self.texts[cell]
        texts = [found] if isinstance(found, str) else found
        return None if texts is None or (self.reduced and len(texts) > 1) else texts

    def _named(self, row: Sequence[int]) -> dict[str, Any]:
        named: dict[str, Any] = dict(zip(self.grid.axis_names, row, strict=True))
        if self.patch_type_names is not None:
            named["patch_type_name"] = self.patch_type_names[named["patch_type"]]
        return named

    def plot(self, title: str = "", *, digits: Digits = "auto", **fixed: Any) -> Heatmap:
        """The mean over examples as a heatmap.

        The last axis goes from left to right, all others together from top to bottom.

        Args:
            title: above the picture.
            digits: decimals written into the cells; "auto" chooses them, None writes no numbers.
            fixed: an axis and the entry of it to draw: `layer=3`, `patch_type="q"`,
                `metric="loss"`.

        Raises:
            InputError: no such axis or entry, or more cells than fit into a picture.
        """
        axes, entries = self.axis_labels, self._entries
        table = self.mean().detach().cpu()
        if self.has_metric_axis and len(self.metric_names) == 1:
            fixed = {"metric": self.metric_names[0], **fixed}
        for name, value in fixed.items():
            entry = _entry(entries, name, value)
            table = table.select(list(axes).index(name), entry)
            del axes[name]
        metrics = [str(fixed["metric"])] if "metric" in fixed else self.metric_names
        named = metrics != ["metric"]
        return heatmap_of(
            table,
            axes,
            title or (", ".join(metrics) if named else ""),
            digits=digits,
            advice="Say which to draw: plot(layer=3), plot(metric='loss').",
            unit=metrics[0] if len(metrics) == 1 else "",
        )

    @property
    def axis_labels(self) -> dict[str, Sequence[str]]:
        """The axes and the names of their entries, without the batch axis.

        Positions are named by their tokens, if the examples are of the same length.
        """
        return {name: self._labels(name, entries) for name, entries in self._entries.items()}

    def _labels(self, name: str, entries: Sequence[str]) -> Sequence[str]:
        if self.positions is None or name not in POSITION_AXES:
            return entries
        return self.positions.along(map(int, entries))

    @property
    def _entries(self) -> dict[str, Sequence[str]]:
        """The same, with positions as numbers: what `plot` takes."""
        grid = self.grid
        if grid.axis_values is None:
            numbers = [str(i) for i in range(len(grid.rows))]
            swept: dict[str, Sequence[str]] = {"cell": grid.names or numbers}
        else:
            pairs = zip(grid.axis_names, grid.axis_values, strict=True)
            swept = {name: [str(value) for value in axis] for name, axis in pairs}
        if self.patch_type_names is not None:
            swept["patch_type"] = self.patch_type_names
        return {**({"metric": self.metric_names} if self.has_metric_axis else {}), **swept}


def _entry(axes: Mapping[str, Sequence[str]], name: str, value: Any) -> int:
    if name not in axes:
        raise InputError(f"There is no axis {name!r}; there are {list(axes)}.")
    if str(value) not in axes[name]:
        raise InputError(f"There is no {name} {value!r}; there are {', '.join(axes[name])}.")
    return list(axes[name]).index(str(value))
