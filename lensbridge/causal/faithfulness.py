"""Faithfulness: how much of a model's behaviour its circuit reproduces alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from lensbridge.causal.ablation import ablation_of
from lensbridge.causal.circuit import Circuit, CircuitLike
from lensbridge.causal.pair import Pair
from lensbridge.causal.replacement import AblationMode, Replacement
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.metric import MetricFunction, Reduce
from lensbridge.viz import Bars, Drawn


@dataclass(frozen=True)
class FaithfulnessConfig:
    """Options of `faithfulness` as one object: what replaces the parts outside the circuit."""

    ablation: AblationMode = "corrupt"


@dataclass(frozen=True, eq=False)
class FaithfulnessResult(Drawn):
    """The metric of a model, of its circuit alone, and of the model without the circuit.

    Args:
        circuit: the circuit.
        ablation: what replaced the other parts.
        full: the metric of the whole model on the clean input, `[]` or `[example]`.
        kept: the metric with only the circuit kept.
        removed: the metric with only the circuit replaced.
        empty: the metric with every part replaced.
        corrupt: the metric of the whole model on the corrupted input.
        total: number of parts of the model, without the input.

    Units: `full`, `kept`, `removed`, `empty` and `corrupt` have those of the metric. The rest are
        fractions of the difference between `full` and `empty` (or `corrupt`); they can be below 0
        or above 1, and are NaN where the difference is 0.
    """

    circuit: Circuit
    ablation: AblationMode
    full: Tensor
    kept: Tensor
    removed: Tensor
    empty: Tensor
    corrupt: Tensor
    total: int

    def __repr__(self) -> str:
        parts = sum(label.partition("@")[0] != "input" for label in self.circuit.labels)
        return (
            f"FaithfulnessResult({parts} of {self.total} {self.circuit.kind}, "
            f"{self.ablation}: faithfulness {self.faithfulness:.3g}, "
            f"completeness {self.completeness:.3g})"
        )

    @property
    def faithfulness(self) -> float:
        """The fraction of `full` minus `empty` that the circuit alone gives; 1 is all of it.

        Examples are averaged first.
        """
        return self._share(self.kept, self.empty)

    @property
    def completeness(self) -> float:
        """The fraction that remains without the circuit; 0 means that the circuit lacks nothing.

        Source: Marks et al. 2024, Sparse feature circuits, section 3.2.
        """
        return self._share(self.removed, self.empty)

    @property
    def recovered(self) -> float:
        """The fraction of the difference between clean and corrupted run that the circuit gives."""
        return self._share(self.kept, self.corrupt)

    @property
    def per_example(self) -> Tensor:
        """The faithfulness of each example.

        Shapes: `[example]`; `[]` where the metric gave one number.
        """
        return (self.kept - self.empty) / (self.full - self.empty)

    def plot(self, *, title: str = "") -> Bars:
        """Bars of the metric: of the whole model, of the circuit, without it, of neither."""
        rows = {
            "whole model": self.full,
            "circuit alone": self.kept,
            "without the circuit": self.removed,
            "every part replaced": self.empty,
            "corrupted input": self.corrupt,
        }
        values = [value.detach().double() for value in rows.values()]
        kept = all(value.numel() > 1 for value in values)
        errors = [float(value.std()) / value.numel() ** 0.5 for value in values] if kept else None
        shares = ["", f"({self.faithfulness:.0%})", f"({self.completeness:.0%})", "", ""]
        means = [float(value.mean()) for value in values]
        title = title or f"A circuit of {len(self.circuit)} {self.circuit.kind}"
        return Bars(title, means, list(rows), "metric", errors, shares)

    def _share(self, value: Tensor, bottom: Tensor) -> float:
        low = bottom.mean()
        return float((value.mean() - low) / (self.full.mean() - low)) + 0.0  # no -0.0


@overload
def faithfulness(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: MetricFunction,
    circuit: CircuitLike,
    config: FaithfulnessConfig | None = ...,
    *,
    ablation: AblationMode = ...,
    reference: Any = ...,
    mean_tokens: Any = ...,
    reduce: Reduce = ...,
    seed: int = ...,
) -> FaithfulnessResult: ...


@overload
def faithfulness(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: Mapping[str, MetricFunction],
    circuit: CircuitLike,
    config: FaithfulnessConfig | None = ...,
    *,
    ablation: AblationMode = ...,
    reference: Any = ...,
    mean_tokens: Any = ...,
    reduce: Reduce = ...,
    seed: int = ...,
) -> dict[str, FaithfulnessResult]: ...


def faithfulness(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: MetricFunction | Mapping[str, MetricFunction],
    circuit: CircuitLike,
    config: FaithfulnessConfig | None = None,
    *,
    ablation: AblationMode = "corrupt",
    reference: Any = None,
    mean_tokens: Any = None,
    reduce: Reduce = "scalar",
    seed: int = 0,
) -> FaithfulnessResult | dict[str, FaithfulnessResult]:
    """Measure a circuit: run the clean input with all other parts replaced, and the reverse.

    Args:
        model: the model, in eval mode.
        clean: an input.
        corrupt: one of the same shape, position for position.
        metric: maps logits to a number, or to one for each example; or several by name, which
            share the runs.
        circuit: nodes ("a2.h1", "m0"; the input is never replaced) or edges ("a0.h1->a2.h1<k>"). An
            encoder-decoder has the nodes of both stacks ("encoder.a0.h1", "c1.h2").
        config: the ablation as one object.
        ablation: what replaces a part. "corrupt": its value in the corrupted run; "mean": its mean
            over a reference, at each position; "zero": zeros; "resample": its value in an example
            of the reference, drawn for each example.
        reference: inputs of the same length, for "mean" and "resample".
        mean_tokens: TransformerLens's name for `reference`.
        reduce: as in `lensbridge.patching`.
        seed: seed for "resample".

    Returns:
        A result; with metrics by name, one for each.

    Raises:
        InputError: a part that the model lacks, inputs whose positions do not correspond, a metric
            of a wrong shape, or a missing reference.

    Example:
        >>> import lensbridge
        >>> from lensbridge.causal import faithfulness
        >>> model = lensbridge.load("demo")
        >>> clean, corrupt = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"
        >>> paris = model.to_single_token(" Paris")
        >>> def metric(logits):
        ...     return logits[0, -1, paris]
        >>> nothing = faithfulness(model, clean, corrupt, metric, [])
        >>> nothing.faithfulness, nothing.completeness
        (0.0, 1.0)
    """
    if config is not None and not isinstance(config, FaithfulnessConfig):
        raise InputError(f"config is a FaithfulnessConfig, not {config!r}; pass ablation by name.")
    if config is not None and ablation not in ("corrupt", config.ablation):
        raise InputError(f"Pass ablation={ablation!r} or {config}, not both.")
    mode = ablation if config is None else config.ablation
    asked = Circuit.of(circuit)
    pair = Pair.of(model, clean, corrupt, metric, reduce, "noise")
    examples = mean_tokens if reference is None else reference
    here = ablation_of(
        model, clean, Replacement.of(model, clean, corrupt, mode, examples, seed), asked
    )
    kept = here.keeping(asked.parts)
    full, low = (
        pair.metrics.baseline(BaseRun.run(model, one, []).logits) for one in (clean, corrupt)
    )
    removed, empty = here.without(asked.parts), here.keeping(())
    measured = zip(full, *map(pair.metrics.measure, (kept, removed, empty)), low, strict=True)
    total = len(here.universe)
    found = [FaithfulnessResult(asked, mode, a, b, c, d, e, total) for a, b, c, d, e in measured]
    return dict(zip(pair.metrics.names, found, strict=True)) if pair.metrics.named else found[0]
