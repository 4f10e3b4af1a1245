"""Runs in which only some nodes or edges do what they do; the others do what they did elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.causal.circuit import Circuit
from lensbridge.causal.edge import Edge, at_position
from lensbridge.causal.graph import Graph, check_unedited
from lensbridge.causal.pair import check_aligned, padding_of
from lensbridge.causal.rewiring import Rewired
from lensbridge.causal.streams import points_of_senders
from lensbridge.errors import InputError
from lensbridge.patching.node import Node, setting
from lensbridge.patching.units import enumerate_nodes, point_of, usual_units
from lensbridge.patching.unpatched import Base

if TYPE_CHECKING:
    from lensbridge.model import LensModel

AblationMode = Literal["corrupt", "mean", "zero", "resample"]
"""What takes the place of a part: its value in the corrupted run; its mean over the examples of a
reference, position by position; nothing; its value in some example of a reference, drawn anew for
each example."""


@dataclass(frozen=True)
class Replacement:
    """Where the values of ablated parts come from.

    Args:
        mode: how.
        source: the input whose run they come from.
        drawn: which of its examples each example gets, for "resample".
    """

    mode: AblationMode
    source: Any
    drawn: Tensor | None = None

    @classmethod
    def of(
        cls,
        model: "LensModel",
        clean: Any,
        corrupt: Any,
        mode: AblationMode,
        reference: Any,
        seed: int,
    ) -> "Replacement":
        """A replacement, checked.

        Raises:
            InputError: an unknown mode, a reference of another length, or one that is missing.
        """
        if mode not in ("corrupt", "mean", "zero", "resample"):
            raise InputError(f"ablation is 'corrupt', 'mean', 'zero' or 'resample', not {mode!r}.")
        check_aligned(model, clean, corrupt)
        if mode in ("corrupt", "zero"):
            if reference is not None:
                raise InputError(f"ablation={mode!r} uses no reference; 'mean' and 'resample' do.")
            return cls(mode, corrupt)
        if reference is None:
            raise InputError(
                f"ablation={mode!r} takes its values from examples: pass reference=..., inputs of "
                "the same length."
            )
        rows, given = _sizes(model, clean, reference)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(given, (rows,), generator=generator)
        return cls(mode, reference, drawn if mode == "resample" else None)

    def take(self, value: Tensor, axis: int = 0) -> Tensor:
        """What the run's examples come to, along the axis of examples."""
        if self.mode == "mean":
            return value.mean(axis, keepdim=True)
        if self.mode == "zero":
            return torch.zeros_like(value)
        drawn = self.drawn
        return value if drawn is None else value.index_select(axis, drawn.to(value.device))


def _sizes(model: "LensModel", clean: Any, reference: Any) -> tuple[int, int]:
    """How many examples an input and a reference have.

    Raises:
        InputError: their positions do not lie over each other.
    """
    rows, given = (model._preparer.prepare(one) for one in (clean, reference))
    if rows.tokens is None or given.tokens is None:
        raise InputError("'mean' and 'resample' take an input and a reference of ids or text.")
    lengths = rows.tokens.shape[1], given.tokens.shape[1]
    if lengths[0] != lengths[1]:
        raise InputError(
            f"The reference has {lengths[1]} positions and the input {lengths[0]}: it has to have "
            "as many for each row."
        )
    masks = [one for one in map(padding_of, (rows, given)) if one is not None]
    if any(bool((one != masks[0][:1]).any()) for one in masks):
        raise InputError(
            "Rows of the reference or the input are padded at different places, so what stands at "
            "a position of one cannot take the place of another's. Use rows of equal length."
        )
    return len(rows.tokens), len(given.tokens)


class Ablation(ABC):
    """A model on one input, of which parts can be replaced.

    Args:
        model: the model.
        input: what is run.
        replacement: what stands for ablated parts.
    """

    def __init__(self, model: "LensModel", input: Any, replacement: Replacement) -> None:
        self.model = model
        self.input = input
        self.replacement = replacement

    @property
    @abstractmethod
    def universe(self) -> Sequence[Any]:
        """Every part that there is, in the order of the stream."""

    @abstractmethod
    def _logits(self, parts: Collection[Any], kept: bool) -> Tensor:
        """Logits when these parts alone are the run's own; or alone are not."""

    def keeping(self, parts: Collection[Any]) -> Tensor:
        """Logits of a run in which every other part is replaced.

        Raises:
            InputError: a part that the model lacks.
        """
        return self._run(parts, kept=True)

    def without(self, parts: Collection[Any]) -> Tensor:
        """Logits of a run in which these parts alone are replaced.

        Raises:
            InputError: a part that the model lacks.
        """
        return self._run(parts, kept=False)

    def _run(self, parts: Collection[Any], kept: bool) -> Tensor:
        given = frozenset(one for one in parts if not _is_input(one))
        missing = [one for one in given if one not in self._known]
        if missing:
            first, last = (Circuit.of([self.universe[i]]).labels[0] for i in (0, -1))
            raise InputError(
                f"{Circuit.of(missing[:1]).labels[0]} is no part of this model's "
                f"{len(self.universe)} that can be replaced: {first} to {last}."
            )
        with torch.no_grad():
            return self._logits(given, kept)

    @cached_property
    def _known(self) -> frozenset[Any]:
        return frozenset(self.universe)

    def _source(self, points: Sequence[str]) -> ActivationCache:
        return Base.run(self.model, self.replacement.source, points).cache


class NodeAblation(Ablation):
    """Replaces what nodes write, everywhere. The input is always the run's own.

    Args:
        model, input, replacement: as in `Ablation`.
        like: nodes whose kinds (neurons rather than MLPs, positions) decide what the nodes are.
    """

    def __init__(
        self, model: "LensModel", input: Any, replacement: Replacement, like: Collection[Node] = ()
    ) -> None:
        super().__init__(model, input, replacement)
        self._like = like

    @cached_property
    def universe(self) -> Sequence[Node]:
        """Heads, mixers and MLPs (or neurons)."""
        kinds = {node.kind for node in self._like}
        units = [one for one in usual_units(self.model, self.model.native.main) if one != "input"]
        swaps = {"neuron": "mlp", "attn": "head"}
        for finer, usual in swaps.items():
            if finer in kinds and usual not in kinds:
                units = [finer if one == usual else one for one in units]
        positions = None
        if any(node.position is not None for node in self._like):
            positions = _length(self.model, self.input)
        return enumerate_nodes(self.model, units, positions=positions)

    @cached_property
    def _points(self) -> Mapping[Node, str]:
        return {node: point_of(self.model, node) for node in self.universe}

    @cached_property
    def _values(self) -> Mapping[str, Tensor]:
        points = list(dict.fromkeys(self._points.values()))
        cache = self._source(points)
        return {point: self.replacement.take(cache[point]) for point in points}

    def _logits(self, parts: Collection[Node], kept: bool) -> Tensor:
        gone: dict[str, list[Node]] = {}
        for node, point in self._points.items():
            if (node in parts) != kept:
                gone.setdefault(point, []).append(node)
        hooks = [(point, setting(self._values[point], own)) for point, own in gone.items()]
        logits = self.model.run_with_hooks(self.input, hooks)
        assert isinstance(logits, Tensor)
        return logits


class EdgeAblation(Ablation):
    """Replaces what receivers hear of senders, edge by edge.

    Args:
        model, input, replacement: as in `Ablation`.
        like: edges that decide whether each position counts as an edge of its own.
    """

    def __init__(
        self, model: "LensModel", input: Any, replacement: Replacement, like: Collection[Edge] = ()
    ) -> None:
        super().__init__(model, input, replacement)
        check_unedited(model)
        each = any(sender.position is not None for sender, _ in like)
        self._positions: tuple[int | None, ...] = (None,)
        if each:
            self._positions = tuple(range(_length(model, input)))

    @cached_property
    def graph(self) -> Graph:
        """Who writes and who reads."""
        return Graph.of(self.model)

    @cached_property
    def universe(self) -> Sequence[Edge]:
        """Every edge."""
        if self._positions == (None,):
            return self.graph.edges
        return [at_position(edge, p) for edge in self.graph.edges for p in self._positions]

    @cached_property
    def _rewired(self) -> Rewired:
        source = self._source(points_of_senders(self.graph))
        take = self.replacement.take
        return Rewired(self.graph, source, lambda rows: take(rows, 1), self._positions)

    def _logits(self, parts: Collection[Edge], kept: bool) -> Tensor:
        return self._rewired.run(self.input, parts, kept)


def _is_input(part: Any) -> bool:
    """Whether it is the input as a node, which is always the run's own."""
    return isinstance(part, Node) and part.kind == "input"


def _length(model: "LensModel", given: Any) -> int:
    """Positions of an input."""
    prepared = model._preparer.prepare(given)
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if whole is None:
        raise InputError("Positions can be told apart in an input of ids or embeddings.")
    return int(whole.shape[1])


def ablation_of(
    model: "LensModel", clean: Any, replacement: Replacement, circuit: Circuit
) -> Ablation:
    """The ablation that a circuit's parts call for."""
    if circuit.kind == "edges":
        return EdgeAblation(model, clean, replacement, circuit.edges)
    return NodeAblation(model, clean, replacement, circuit.nodes)
