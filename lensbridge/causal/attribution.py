"""Attribution patching: an estimate of every patch from two passes forward and one back."""

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
    """What is attributed, as one value.

    Args:
        granularity: "node" or "edge".
        ig_steps: 1 for the plain gradient; more average it along the way between the inputs.
    """

    granularity: Granularity = "node"
    ig_steps: int = 1

    def options(self) -> dict[str, Any]:
        """As arguments of `attribution_patch`."""
        method = "gradient" if self.ig_steps == 1 else "ig_inputs"
        return {"granularity": self.granularity, "method": method, "steps": self.ig_steps}


EdgeAttributionConfig = AttributionConfig


@dataclass(frozen=True)
class _Options:
    """What `attribution_patch` can be asked, checked.

    Raises:
        InputError: an unknown word, or words that do not go together.
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
            raise InputError("units is empty: there is nothing to score. None is the usual ones.")
        if self.attention_fix and not set(self.units or ()) & {"q", "k"}:
            raise InputError("attention_fix is for queries and keys: ask for units 'q' or 'k'.")
        if self.granularity == "edge":
            self._check_of_edges()

    def _check_of_edges(self) -> None:
        for name in ("units", "attention_fix", "grad_drop", "stack"):
            if vars(self)[name]:
                raise InputError(f"{name} is for nodes, not for edges.")


def _asked(
    config: AttributionConfig | None, units: Sequence[str] | str | None, given: dict[str, Any]
) -> _Options:
    """The options, of which a config says some."""
    if config is not None:
        if not isinstance(config, AttributionConfig):
            raise InputError(
                f"config is an AttributionConfig, not {config!r}; granularity and the others are "
                "passed by name."
            )
        twice = [name for name in config.options() if given[name] != vars(_Options)[name]]
        if twice:
            raise InputError(f"{', '.join(twice)}: in config or beside it, not both.")
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
    """Estimate what patching each part of the model does to a metric.

    To first order: a part's value in the other run less its value in the run that is patched, times
    the metric's gradient there. By default that is denoising, as in `lensbridge.patching`: the
    corrupted input is run, and a positive score says that the clean value raises the metric.

    An edge's score is what its sender writes in the other run less what it writes in this one, as
    the receiver's stream has it, times the gradient by what the receiver reads. So the edges into a
    receiver sum to the change of its whole input times that gradient.

    Args:
        model: the model, in eval mode.
        clean: an input.
        corrupt: one of the same shape, position for position.
        metric: maps logits `[batch, pos, d_vocab]` to a number, or to one for each example; or
            several by name, which share the passes forward.
        config: granularity and steps as one value; it stands for `granularity`, `method`, `steps`.
        granularity: "node" or "edge".
        units: of nodes: "input", "head", "mlp", "attn", "mixer", "neuron", "q", "k", "v", "stream",
            "cross_head", one or several; None: input, heads, mixers and MLPs, as far as the model
            has them.
        positions: one score for each position instead of their sum.
        method: "gradient"; "ig_inputs" or "ig_activations" average the gradient along the way from
            this run's embeddings (or activation) to the other's.
        steps: over how many points of the way.
        attention_fix: queries and keys through softmax, computed again (AtP*).
        grad_drop: scores are magnitudes, averaged over passes back of which each leaves out what
            one layer adds, so that effects of opposite sign do not cancel (AtP*). A pass back for
            every layer.
        direction: "denoise", or "noise" to put corrupted values into the clean run.
        reduce: as in `lensbridge.patching`: "scalar", "mean", "none".
        stack: nodes of another stack than the main one, as "encoder".

    Returns:
        Scores by unit: `[layer, head or neuron, position?, example?]`; edges
        `[sender, receiver, position?, example?]`. With metrics by name, a result for each.

    Raises:
        InputError: inputs that do not lie over each other, a metric of another shape or cut off
            from the logits, a model in training mode, or options that do not go together.
        AbsentPointError: a unit that the model lacks.

    Source: Nanda 2023, Attribution patching; Syed, Rager and Conmy 2023 (edges); Kramár et al. 2024
    (AtP*), with `grad_drop` averaged over all layers but the node's own.

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
            scores, names, "node", before, after, stack=prefix, signed=not asked.grad_drop
        )
        for scores, before, after in zip(tables, *ends, strict=True)
    ]


def _without_input(asked: _Options, units: Sequence[str]) -> list[str]:
    """The units where embeddings are the input.

    Raises:
        InputError: the token embedding was asked for.
    """
    if asked.method == "ig_inputs" or "input" in (asked.units or ()):
        raise InputError(
            "The unit 'input' and method='ig_inputs' are about token embeddings, and embeddings "
            "were passed in their place. Pass ids, other units, or method='ig_activations'."
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
            {"edge": one}, names, "edge", before, after, graph.senders, graph.receivers
        )
        for one, before, after in zip(tables, *ends, strict=True)
    ]
