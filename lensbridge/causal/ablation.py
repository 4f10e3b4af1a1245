"""Runs in which some nodes or edges keep their values and the values of the others are replaced."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.causal.circuit import Circuit
from lensbridge.causal.edge import Edge, at_position
from lensbridge.causal.graph import Graph, check_unedited
from lensbridge.causal.replacement import Replacement
from lensbridge.causal.rewiring import Rewired
from lensbridge.causal.streams import points_of_senders
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import StackPart
from lensbridge.nodes.node import Node, setting
from lensbridge.nodes.units import enumerate_nodes, point_of, usual_units
from lensbridge.sweeps.base_run import BaseRun


class Ablation(ABC):
    """A model and an input; parts of the model can be replaced.

    Args:
        model: the model.
        input: the input that is run.
        replacement: the values that ablated parts get.
    """

    def __init__(self, model: HookedModel, input: Any, replacement: Replacement) -> None:
        self.model = model
        self.input = input
        self.replacement = replacement

    @property
    @abstractmethod
    def universe(self) -> Sequence[Any]:
        """Every part that can be replaced, in the order of the stream."""

    @abstractmethod
    def _logits(self, parts: Collection[Any], kept: bool) -> Tensor:
        """Logits when only these parts keep their values (`kept`), or only these are replaced."""

    def keeping(self, parts: Collection[Any]) -> Tensor:
        """Logits of a run in which every other part is replaced.

        Raises:
            InputError: a part that the model lacks.
        """
        return self._run(parts, kept=True)

    def without(self, parts: Collection[Any]) -> Tensor:
        """Logits of a run in which only these parts are replaced.

        Raises:
            InputError: a part that the model lacks.
        """
        return self._run(parts, kept=False)

    def _run(self, parts: Collection[Any], kept: bool) -> Tensor:
        given = frozenset(self._named(one) for one in parts if not _is_input(one))
        missing = [one for one in given if one not in self._known]
        if missing:
            first, last = (Circuit.of([self.universe[i]]).labels[0] for i in (0, -1))
            raise InputError(
                f"{Circuit.of(missing[:1]).labels[0]} is not one of the {len(self.universe)} parts "
                f"of this model that can be replaced: {first} to {last}."
            )
        with torch.no_grad():
            return self._logits(given, kept)

    def _named(self, part: Any) -> Any:
        """A part as it is in `universe`, where nodes of the main stack have no prefix."""
        main = self.model.native.main.prefix
        own = isinstance(part, Node) and part.stack == main
        return replace(part, stack=None) if own else part

    @cached_property
    def _known(self) -> frozenset[Any]:
        return frozenset(self.universe)

    def _source(self, points: Sequence[str]) -> ActivationCache:
        return BaseRun.run(self.model, self.replacement.source, points).cache


class NodeAblation(Ablation):
    """Replaces what nodes write. The node "input" is never replaced.

    Args:
        model, input, replacement: as in `Ablation`.
        like: nodes that decide the kinds of nodes: neurons or MLPs, with positions or without.
    """

    def __init__(
        self,
        model: HookedModel,
        input: Any,
        replacement: Replacement,
        like: Collection[Node] = (),
    ) -> None:
        super().__init__(model, input, replacement)
        self._like = like

    @cached_property
    def universe(self) -> Sequence[Node]:
        """Heads, mixers and MLPs (or neurons); in an encoder-decoder those of both stacks."""
        named = {node.stack for node in self._like if node.stack is not None}
        native = self.model.native
        stacks = [
            tower for tower in native.towers if native.is_encoder_decoder or tower.prefix in named
        ]
        return [node for stack in [*stacks, native.main] for node in self._nodes(stack)]

    def _nodes(self, stack: StackPart) -> Sequence[Node]:
        kinds = {node.kind for node in self._like}
        units = [one for one in usual_units(self.model, stack) if one != "input"]
        swaps = {"neuron": "mlp", "attn": "head", "cross": "cross_head"}
        for finer, usual in swaps.items():
            if finer in kinds and usual not in kinds:
                units = [finer if one == usual else one for one in units]
        positions = None
        if any(node.position is not None for node in self._like):
            positions = _length(self.model, self.input, stack)
        return enumerate_nodes(self.model, units, positions=positions, stack=stack.prefix)

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
        return self.model.run_with_hooks(self.input, hooks)


class EdgeAblation(Ablation):
    """Replaces the contributions of senders to receivers, edge by edge.

    Args:
        model, input, replacement: as in `Ablation`.
        like: edges that decide whether there is an edge for each position.
    """

    def __init__(
        self,
        model: HookedModel,
        input: Any,
        replacement: Replacement,
        like: Collection[Edge] = (),
    ) -> None:
        super().__init__(model, input, replacement)
        check_unedited(model)
        each = any(sender.position is not None for sender, _ in like)
        self._positions: tuple[int | None, ...] = (None,)
        if each:
            self._positions = tuple(range(_length(model, input, model.native.main)))

    @cached_property
    def graph(self) -> Graph:
        """The senders and receivers."""
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
    """Whether a part is the node "input", which is never replaced."""
    return isinstance(part, Node) and part.kind == "input"


def _length(model: HookedModel, given: Any, stack: StackPart) -> int:
    """The number of positions of an input in a stack."""
    point = f"{stack.prefix}.0.hook_resid_pre"
    return BaseRun.run(model, given, [point]).cache[point].shape[1]


def ablation_of(
    model: HookedModel, clean: Any, replacement: Replacement, circuit: Circuit
) -> Ablation:
    """The ablation of nodes or of edges, as the circuit has them."""
    if circuit.kind == "edges":
        return EdgeAblation(model, clean, replacement, circuit.edges)
    return NodeAblation(model, clean, replacement, circuit.nodes)
