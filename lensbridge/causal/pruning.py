"""Circuit search by pruning: parts that the metric does not need are removed one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from tqdm.auto import tqdm

from lensbridge.causal.ablation import Ablation, EdgeAblation, NodeAblation
from lensbridge.causal.circuit import Circuit, CircuitLike
from lensbridge.causal.pair import Pair
from lensbridge.causal.replacement import AblationMode, Replacement
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.sweeps.metric import MetricFunction
from lensbridge.viz import Drawn, Lines

Over = Literal["nodes", "edges"]
"""What the circuit is made of."""


@dataclass(frozen=True)
class Trial:
    """The removal of one part, to see its effect.

    Args:
        part: the text of the part.
        metric: the metric without it and without the parts that were removed before.
        change: that metric minus the metric before.
        kept: whether the part was put back.
    """

    part: str
    metric: float
    change: float
    kept: bool


@dataclass(frozen=True)
class Pruning(Drawn):
    """A circuit, and how it was found.

    Args:
        circuit: the parts that were kept.
        trials: every trial, in order.
        full: the metric of the whole model.
        metric: the metric of the circuit alone.
        total: number of parts at the start.
        partial: whether the search was interrupted, so that some parts were not tried.
    """

    circuit: Circuit
    trials: tuple[Trial, ...]
    full: float
    metric: float
    total: int
    partial: bool = False

    def plot(self, *, title: str = "") -> Lines:
        """The metric after each trial, from the whole model to the circuit.

        Raises:
            InputError: no part was tried.
        """
        if not self.trials:
            raise InputError("No part was tried, so there is no search to draw.")
        now = self.trials[0].metric - self.trials[0].change
        after = []
        for trial in self.trials:
            now = now if trial.kept else trial.metric
            after.append(now)
        return Lines(
            title or f"Pruning: {len(self.circuit)} of {self.total} {self.circuit.kind} kept",
            {"metric": after},
            [f"{trial.part} kept" if trial.kept else trial.part for trial in self.trials],
            axes=("part tried", "metric"),
            reference=(self.full, "whole model"),
        )

    def __repr__(self) -> str:
        cut = " interrupted;" if self.partial else ""
        return (
            f"Pruning({len(self.circuit)} of {self.total} {self.circuit.kind} kept;{cut} "
            f"metric {self.metric:.4g}, of the whole model {self.full:.4g})"
        )


def prune_circuit(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: MetricFunction,
    threshold: float,
    *,
    over: Over = "nodes",
    ablation: AblationMode = "corrupt",
    reference: Any = None,
    candidates: CircuitLike | None = None,
    order: Sequence[Any] | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> Pruning:
    """Find a circuit: remove every part whose removal changes the metric by less than a threshold.

    The search is greedy and goes from the logits back to the input. It replaces each part together
    with those that were removed before, and puts it back if the metric changes too much. Ctrl-C
    ends the search and returns the circuit as it is then.

    Args:
        model: the model, in eval mode.
        clean: the input that is run.
        corrupt: one of the same shape, position for position.
        metric: maps logits to a number; a divergence from the whole model's logits works too.
        threshold: the change of the metric below which a part is removed, in the metric's units.
        over: "nodes" or "edges".
        ablation: as in `faithfulness`.
        reference: as in `faithfulness`.
        candidates: parts to start with, such as the largest of an attribution; all others are
            replaced from the start. None: every part.
        order: parts in the order in which to try them; None: from the last to the first.
        seed: seed for "resample".
        verbose: show a progress bar.

    Raises:
        InputError: as `faithfulness`; several metrics; a threshold below 0; or an order that names
            other parts.

    Source: Conmy et al. 2023, Towards automated circuit discovery for mechanistic interpretability.
    """
    number = isinstance(threshold, int | float) and threshold >= 0
    if not number or over not in ("nodes", "edges"):
        raise InputError(
            f"threshold is 0 or more and over is 'nodes' or 'edges', not {threshold} and {over!r}."
        )
    pair = Pair.of(model, clean, corrupt, metric, "scalar", "noise", single=True)
    start = None if candidates is None else Circuit.of(candidates)
    if start is not None and len(start) and start.kind != over:
        raise InputError(
            f"The candidates are {start.kind} and the search is over {over}: pass over="
            f"{start.kind!r}, or candidates that are {over}."
        )
    replacement = Replacement.of(model, clean, corrupt, ablation, reference, seed)
    here: Ablation = (
        EdgeAblation(model, clean, replacement, () if start is None else start.edges)
        if over == "edges"
        else NodeAblation(model, clean, replacement, () if start is None else start.nodes)
    )
    parts = list(here.universe) if start is None else _sorted(here, start)
    tried = parts[::-1] if order is None else _ordered(order, parts)
    return _pruned(here, pair, parts, tried, threshold, verbose)


def _ordered(order: Sequence[Any], parts: Sequence[Any]) -> list[Any]:
    """The parts to try, each once, in the user's order.

    Raises:
        InputError: a part that the search does not start with.
    """
    asked = [part for one in order for part in Circuit.of([one]).parts]
    foreign = [part for part in asked if part not in set(parts)]
    if foreign:
        raise InputError(
            f"order has {Circuit.of(foreign[:1]).labels[0]}, which is not among the {len(parts)} "
            "parts that the search starts with."
        )
    return list(dict.fromkeys(asked))


def _sorted(here: Ablation, start: Circuit) -> list[Any]:
    """Candidates in the order of the stream; `keeping` reports those that the model lacks."""
    place = {part: i for i, part in enumerate(here.universe)}
    return sorted(start.parts, key=lambda part: place.get(part, -1))


def _pruned(
    here: Ablation,
    pair: Pair,
    parts: Sequence[Any],
    tried: Sequence[Any],
    threshold: float,
    verbose: bool,
) -> Pruning:
    kept = dict.fromkeys(parts)
    full = _number(pair, here.keeping(here.universe))
    now = _number(pair, here.keeping(kept))
    trials, partial = list[Trial](), False
    try:
        for part in tqdm(tried, disable=not verbose, desc="pruning"):
            without = [one for one in kept if one != part]
            found = _number(pair, here.keeping(without))
            leave = abs(found - now) < threshold
            trials.append(Trial(Circuit.of([part]).labels[0], found, found - now, not leave))
            if leave:
                del kept[part]
                now = found
    except KeyboardInterrupt:
        partial = True
    return Pruning(Circuit.of(list(kept)), tuple(trials), full, now, len(parts), partial)


def _number(pair: Pair, logits: Tensor) -> float:
    return float(pair.metrics.baseline(logits)[0])
