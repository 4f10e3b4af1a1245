"""Attribution patching: an estimate of every patch from two forward passes and one backward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from lensbridge.causal.edges import EdgeScores
from lensbridge.causal.nodes import NodeScores
from lensbridge.causal.pair import Direction, Pair
from lensbridge.causal.path import Method, check_method
from lensbridge.causal.result import AttributionResult, Granularity
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.nodes.units import stack_of, usual_units
from lensbridge.sweeps.metric import MetricFunction, Reduce


@dataclass(frozen=True)
class AttributionConfig:
    """Options of `attribution_patch` as one object.

    Args:
        granularity: "node" or "edge".
        ig_steps: 1 for the plain gradient; more for its average between the two inputs.
    """

    granularity: Granularity = "node"
    ig_steps: int = 1

    def options(self) -> dict[str, Any]:
        """The same as keywords of `attribution_patch`."""
        method = "gradient" if self.ig_steps == 1 else "ig_inputs"
        return {"granularity": self.granularity, "method": method, "steps": self.ig_steps}


EdgeAttributionConfig = AttributionConfig


@dataclass(frozen=True)
class _Options:
    """The options of `attribution_patch`, checked.

    Raises:
        InputError: an unknown value, or options that exclude each other.
    """

    granularity: Granularity = "node"
    units: Sequence[str] | None = None
    positions: bool = False
    method: Method = "gradient"
    steps: int = 1
    attention_fix: bool = False
    grad_drop: bool = False
    direction: Direction = "denoise"
    reduce: Reduce = "scalar"
    stack: str | None = None

    def __post_init__(self) -> None:
        check_method(self.method, self.steps)
        if self.granularity not in ("node", "edge"):
            raise InputError(f"granularity is 'node' or 'edge', not {self.granularity!r}.")
        if self.units is not None and not self.units:
            raise InputError("units is empty, so nothing is scored. Pass None for the usual ones.")
        if self.attention_fix and not set(self.units or ()) & {"q", "k"}:
            raise InputError("attention_fix is for queries and keys: pass units 'q' or 'k'.")
        if self.granularity == "edge":
            self._check_of_edges()

    def _check_of_edges(self) -> None:
        for name in ("units", "attention_fix", "grad_drop", "stack"):
            if vars(self)[name]:
                raise InputError(f"{name} is for nodes, not for edges.")


def _asked(
    config: AttributionConfig | None, units: Sequence[str] | str | None, given: dict[str, Any]
) -> _Options:
    """The options, some of them from a config."""
    if config is not None:
        if not isinstance(config, AttributionConfig):
            raise InputError(
                f"config is an AttributionConfig, not {config!r}; pass granularity and other "
                "options by name."
            )
        twice = [name for name in config.options() if given[name] != vars(_Options)[name]]
        if twice:
            raise InputError(f"Pass {', '.join(twice)} in config or as keywords, not both.")
        given = {**given, **config.options()}
    return _Options(units=[units] if isinstance(units, str) else units, **given)


@overload
def attribution_patch(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: MetricFunction,
    config: AttributionConfig | None = ...,
    *,
    granularity: Granularity = ...,
    units: Sequence[str] | str | None = ...,
    positions: bool = ...,
    method: Method = ...,
    steps: int = ...,
    attention_fix: bool = ...,
    grad_drop: bool = ...,
    direction: Direction = ...,
    reduce: Reduce = ...,
    stack: str | None = ...,
) -> AttributionResult: ...


@overload
def attribution_patch(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: Mapping[str, MetricFunction],
    config: AttributionConfig | None = ...,
    *,
    granularity: Granularity = ...,
    units: Sequence[str] | str | None = ...,
    positions: bool = ...,
    method: Method = ...,
    steps: int = ...,
    attention_fix: bool = ...,
    grad_drop: bool = ...,
    direction: Direction = ...,
    reduce: Reduce = ...,
    stack: str | None = ...,
) -> dict[str, AttributionResult]: ...


def attribution_patch(
    model: HookedModel,
    clean: Any,
    corrupt: Any,
    metric: MetricFunction | Mapping[str, MetricFunction],
    config: AttributionConfig | None = None,
    *,
    granularity: Granularity = "node",
    units: Sequence[str] | str | None = None,
    positions: bool = False,
    method: Method = "gradient",
    steps: int = 1,
    attention_fix: bool = False,
    grad_drop: bool = False,
    direction: Direction = "denoise",
    reduce: Reduce = "scalar",
    stack: str | None = None,
) -> AttributionResult | dict[str, AttributionResult]:
    """Estimate the effect on a metric of patching each part of the model.

    The estimate is of first order: the value of a part in the other run minus its value in the run
    that is patched, times the metric's gradient there. By default this is denoising, as in
    `lensbridge.patching`: the corrupted input is run, and a positive score means that the clean
    value raises the metric.

    The score of an edge is the difference between the two runs in what its sender contributes to
    the receiver's input, times the gradient at that input. So the edges into a receiver sum to the
    difference in its whole input times that gradient.

    Args:
        model: the model, in eval mode.
        clean: an input.
        corrupt: one of the same shape, position for position.
        metric: maps logits `[batch, pos, d_vocab]` to a number, or to one for each example; or
            several by name, which share the forward passes.
        config: sets `granularity`, `method` and `steps` as one object.
        granularity: "node" or "edge".
        units: which nodes are scored: "input", "head", "mlp", "attn", "mixer", "neuron", "q", "k",
            "v", "stream", "cross_head", one or several; None: input, heads, mixers and MLPs, as far
            as the model has them.
        positions: give a score for each position instead of their sum.
        method: "gradient"; or "ig_inputs" or "ig_activations", which average the gradient between
            what enters the stream (or the activation) in this run and in the other.
        steps: how many gradients are averaged.
        attention_fix: compute softmax again for queries and keys (AtP*).
        grad_drop: scores are magnitudes, averaged over backward passes that each leave out what one
            layer adds, so that effects of opposite sign do not cancel (AtP*). One backward pass
            for each layer.
        direction: "denoise", or "noise" to patch the clean run with corrupted values.
        reduce: as in `lensbridge.patching`: "scalar", "mean", "none".
        stack: score nodes of another stack than the main one, as "encoder".

    Returns:
        Scores by unit: `[layer, head or neuron, position?, example?]`; edges
        `[sender, receiver, position?, example?]`. With metrics by name, a result for each.

    Raises:
        InputError: inputs whose positions do not correspond, a metric of a wrong shape or without a
            gradient, a model in training mode, or options that exclude each other.
        AbsentPointError: a unit that the model lacks.

    Source: Nanda 2023, Attribution patching; Syed, Rager and Conmy 2023 (edges); Kramár et al. 2024
    (AtP*), with `grad_drop` averaged over all layers except the node's own.

    Example:
        >>> import lensbridge
        >>> from lensbridge.causal import attribution_patch
        >>> model = lensbridge.load("demo")
        >>> paris, rome = (model.to_single_token(city) for city in (" Paris", " Rome"))
        >>> result = attribution_patch(
        ...     model,
        ...     "The Eiffel Tower is in the city of",
        ...     "The Colosseum is in the city of",
        ...     lambda logits: logits[0, -1, paris] - logits[0, -1, rome],
        ... )
        >>> result
        AttributionResult(input []; head [layer 4, head 4]; mlp [layer 4])
    """
    given = {
        "granularity": granularity,
        "positions": positions,
        "method": method,
        "steps": steps,
        "attention_fix": attention_fix,
        "grad_drop": grad_drop,
        "direction": direction,
        "reduce": reduce,
        "stack": stack,
    }
    asked = _asked(config, units, given)
    pair = Pair.of(model, clean, corrupt, metric, asked.reduce, asked.direction)
    results = _of_edges(pair, asked) if asked.granularity == "edge" else _of_nodes(pair, asked)
    found = dict(zip(pair.metrics.names, results, strict=True))
    return found if pair.metrics.named else results[0]


def _of_nodes(pair: Pair, asked: _Options) -> list[AttributionResult]:
    stack = stack_of(pair.model, asked.stack)
    units = usual_units(pair.model, stack) if asked.units is None else asked.units
    if pair.of_embeddings:
        units = _without_input(asked, units)
    fixes = asked.attention_fix, asked.grad_drop
    scoring = NodeScores(pair, stack, units, asked.positions, *fixes)
    tables, other, base = scoring.run(asked.method, asked.steps)
    names = {unit: scoring.axis_names(unit) for unit in units}
    ends = (pair.metrics.measure(logits) for logits in (base, other.logits))
    prefix = None if stack is pair.model.native.main else stack.prefix
    return [
        AttributionResult(
            scores,
            names,
            "node",
            before,
            after,
            stack=prefix,
            signed=not asked.grad_drop,
            positions=pair.positions,
        )
        for scores, before, after in zip(tables, *ends, strict=True)
    ]


def _without_input(asked: _Options, units: Sequence[str]) -> list[str]:
    """The units that can be scored if the input is embeddings.

    Raises:
        InputError: scores of the token embedding were asked for.
    """
    if asked.method == "ig_inputs" or "input" in (asked.units or ()):
        raise InputError(
            "The unit 'input' and method='ig_inputs' need token embeddings, and the inputs are "
            "embeddings. Pass ids, other units, or method='ig_activations'."
        )
    return [unit for unit in units if unit != "input"]


def _of_edges(pair: Pair, asked: _Options) -> list[AttributionResult]:
    if pair.of_embeddings:
        _without_input(asked, ())
    scoring = EdgeScores.of(pair, asked.positions)
    tables, other, base = scoring.run(asked.method, asked.steps)
    names, graph = {"edge": scoring.axis_names}, scoring.graph
    ends = (pair.metrics.measure(logits) for logits in (base, other.logits))
    return [
        AttributionResult(
            {"edge": one},
            names,
            "edge",
            before,
            after,
            graph.senders,
            graph.receivers,
            positions=pair.positions,
        )
        for one, before, after in zip(tables, *ends, strict=True)
    ]
