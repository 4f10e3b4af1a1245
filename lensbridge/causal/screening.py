"""Screening: attribution ranks the parts, and patching measures the effect of the first ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lensbridge.causal.ablation import EdgeAblation
from lensbridge.causal.attribution import attribution_patch
from lensbridge.causal.edge import Edge
from lensbridge.causal.pair import Direction, Pair
from lensbridge.causal.replacement import Replacement
from lensbridge.causal.result import AttributionResult, text_of
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.nodes.node import Node
from lensbridge.nodes.units import point_of
from lensbridge.patching import Cell, sweep
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.grid import pandas
from lensbridge.sweeps.metric import MetricFunction
from lensbridge.sweeps.result import PatchingResult
from lensbridge.viz import Bars, Drawn
from lensbridge.viz.numbers import short


@dataclass(frozen=True, eq=False)
class Screening(Drawn):
    """The parts with the largest estimates, and the measured effects of patching them.

    Args:
        parts: nodes or edges, largest estimate (over the examples) first.
        estimated: their scores, `[part, example?]`.
        exact: the effect of patching each of them, `[part, example?]`.
        attribution: the scores of every part.
        partial: whether it was interrupted; parts that were not patched are NaN in `exact`.

    Units: both are the metric of the patched run minus that of the unpatched run.
    """

    parts: tuple[Node | Edge, ...]
    estimated: Tensor
    exact: Tensor
    attribution: AttributionResult
    partial: bool = False

    @property
    def labels(self) -> list[str]:
        """The text of each part."""
        return [text_of(part) for part in self.parts]

    @property
    def rank_agreement(self) -> float:
        """Spearman's correlation of estimates and effects over the parts; NaN for fewer than two.

        Where estimates are magnitudes, the magnitudes of the effects are compared with them.
        """
        signed = self.attribution.signed
        exact = _averaged(self.exact if signed else self.exact.abs())
        measured = ~exact.isnan()
        return spearman(_averaged(self.estimated)[measured], exact[measured])

    @property
    def verified(self) -> list[tuple[str, float]]:
        """The text and the measured effect of each part, largest effect first."""
        found = zip(self.labels, _averaged(self.exact).tolist(), strict=True)
        pairs = [one for one in found if not isnan(one[1])]
        return sorted(pairs, key=lambda one: -abs(one[1]))

    def plot(self, *, title: str = "") -> Bars:
        """Bars of the measured effects, each with its estimate in words.

        Parts that were not patched have none.

        Raises:
            InputError: no part was patched.
        """
        pairs = zip(
            self.labels,
            _averaged(self.exact).tolist(),
            _averaged(self.estimated).tolist(),
            strict=True,
        )
        found = [row for row in pairs if not isnan(row[1])]
        if not found:
            raise InputError("The screening was interrupted before a part was patched.")
        names, exact, estimated = zip(*found, strict=True)
        remarks = [f"(estimate {short(value)})" for value in estimated]
        title = title or f"Measured effects, rank agreement {self.rank_agreement:.2g}"
        return Bars(title, exact, names, "change of the metric", remarks=remarks)

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each part and each example that was kept."""
        shape = self.exact.shape
        columns: dict[str, Any] = {
            "part": [one for one in self.labels for _ in range(shape[1:].numel())]
        }
        if len(shape) > 1:
            columns["example"] = list(range(shape[1])) * shape[0]
        columns["estimated"] = self.estimated.flatten().tolist()
        return pandas().DataFrame({**columns, "exact": self.exact.flatten().tolist()})

    def __repr__(self) -> str:
        cut = ", interrupted: NaN where it was not patched" if self.partial else ""
        return f"Screening({len(self.parts)} parts, rank agreement {self.rank_agreement:.3g}{cut})"


def screen(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: MetricFunction,
    k: int = 10,
    *,
    direction: Direction = "denoise",
    verbose: bool = False,
    **options: Any,
) -> Screening:
    """Attribute, then patch the k parts with the largest estimates one by one.

    Ctrl-C during patching returns what was measured until then.

    Args:
        model: the model, in eval mode.
        clean: an input.
        corrupt: one of the same shape, position for position.
        metric: maps logits to a number.
        k: how many parts are patched.
        direction: as in `attribution_patch`.
        verbose: show a progress bar.
        options: other options of `attribution_patch`.

    Raises:
        InputError: as `attribution_patch`; several metrics; or k below 1.
    """
    if not isinstance(k, int) or k < 1:
        raise InputError(f"k is a number of parts, 1 or more, not {k!r}.")
    reduce = options.get("reduce", "scalar")
    pair = Pair.of(model, clean, corrupt, metric, reduce, direction, single=True)
    found = attribution_patch(model, clean, corrupt, metric, direction=direction, **options)
    ranked = found.top_nodes(k) if found.granularity == "node" else found.top_edges(k)
    parts = tuple(one[0] if len(one) == 2 else (one[0], one[1]) for one in ranked)
    estimated = torch.stack([found.score(part) for part in parts]).cpu()
    if found.granularity == "edge":
        exact, partial = _edges_patched(pair, parts, verbose)
    else:
        exact, partial = _nodes_patched(pair, parts, verbose)
    return Screening(parts, estimated, exact.cpu(), found, partial)


def _nodes_patched(pair: Pair, parts: Sequence[Any], verbose: bool) -> tuple[Tensor, bool]:
    """Shapes: `[part, example?]`"""
    places = [point_of(pair.model, node) for node in parts]
    values = BaseRun.run(pair.model, pair.other, places).cache
    cells = [
        Cell(point, node.place, values[point][node.place])
        for node, point in zip(parts, places, strict=True)
    ]
    outside = [i for i, node in enumerate(parts) if node.layer is None]  # never in batches
    inside = [i for i, node in enumerate(parts) if node.layer is not None]
    effects, partial = dict[int, Tensor](), False
    for group, exact in ((outside, True), (inside, None)):
        if group:
            result = _swept(pair, [cells[i] for i in group], exact, verbose)
            effects.update(zip(group, result.effect().detach(), strict=True))
            partial = partial or result.partial
    return torch.stack([effects[i] for i in range(len(parts))]), partial


def _swept(pair: Pair, cells: list[Cell], exact: bool | None, verbose: bool) -> PatchingResult:
    (function,) = pair.metrics.functions.values()
    return sweep(
        pair.model,
        pair.base,
        cells,
        function,
        reduce=pair.metrics.reduce,
        baseline=True,
        exact=exact,
        verbose=verbose,
    )


def _edges_patched(pair: Pair, parts: Sequence[Any], verbose: bool) -> tuple[Tensor, bool]:
    """Shapes: `[part, example?]`"""
    here = EdgeAblation(pair.model, pair.base, Replacement("corrupt", pair.other), parts)
    before = pair.measure(here.keeping(here.universe))
    effects, partial = before.new_full((len(parts), *before.shape), torch.nan), False
    try:
        for i, edge in enumerate(tqdm(parts, disable=not verbose, desc="patching")):
            effects[i] = pair.measure(here.without([edge])) - before
    except KeyboardInterrupt:
        partial = True
    return (effects.mean(-1) if pair.metrics.reduce == "mean" else effects), partial


def _averaged(values: Tensor) -> Tensor:
    """Shapes: `[part, example?]` -> `[part]`"""
    return values.mean(-1) if values.ndim > 1 else values


def spearman(one: Tensor, other: Tensor) -> float:
    """Correlation of ranks; equal values share their mean rank.

    Example:
        >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 5.0]))
        0.5
    """
    if len(one) < 2:
        return float("nan")
    ranks = torch.stack([_ranks(one.double()), _ranks(other.double())])
    return round(float(torch.corrcoef(ranks)[0, 1]), 12)


def _ranks(values: Tensor) -> Tensor:
    below = (values[:, None] > values[None]).sum(1)
    same = (values[:, None] == values[None]).sum(1)
    return below + (same - 1).double() / 2
