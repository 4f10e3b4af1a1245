"""A circuit as a graph: which level each node belongs to, and which score each edge has."""

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeAlias

from lensbridge.causal.edge import Edge, edge_of, edge_text
from lensbridge.nodes.node import Component, Kind, Node
from lensbridge.viz.graph import CircuitGraph
from lensbridge.viz.graph_layout import GraphEdge, GraphNode

LEVELS: Mapping[Kind, tuple[int, str]] = {
    "stream": (0, "stream before {}"),
    "mixer": (1, "mixer {}"),
    "head": (2, "attention {}"),
    "attn": (2, "attention {}"),
    "cross_head": (3, "cross-attention {}"),
    "cross": (3, "cross-attention {}"),
    "mlp": (4, "MLP {}"),
    "neuron": (4, "MLP {}"),
}
"""Where in its layer a node is, and the name of that level."""

PORTS: Mapping[Component | None, int] = {"q": -1, "k": 0, "v": 1, "gate": 1, None: 0}


class Scored(Protocol):
    """A result with a score for each part; `AttributionResult` is one."""

    @property
    def edge_scores(self) -> dict[Edge, float]:
        """Scores by edge."""


Scores: TypeAlias = Scored | Mapping[Edge, float] | Mapping[str, float]
"""Scores of edges: a result, or a mapping from edges or their texts."""


def graph_of(
    nodes: Iterable[Node], edges: Iterable[Edge], scores: Scores | None, title: str
) -> CircuitGraph:
    """The picture of a circuit of nodes or of edges.

    Raises:
        InputError: it is empty, or too large for a picture.
    """
    pairs = list(edges)
    known = _known(scores)
    ends = {_whole(node) for edge in pairs for node in edge} or set(nodes)
    order = sorted(ends, key=_place)
    number = {node: i for i, node in enumerate(order)}
    levels = sorted({_level(node) for node in order})
    drawn = [_edge(edge, number, known) for edge in sorted(pairs, key=edge_text)]
    return CircuitGraph(
        title,
        [GraphNode(str(node), levels.index(_level(node)), _lane(node)) for node in order],
        drawn,
        {levels.index(_level(node)): _name(node) for node in order},
    )


def _known(scores: Scores | None) -> dict[Edge, float]:
    if scores is None:
        return {}
    given = scores if isinstance(scores, Mapping) else scores.edge_scores
    return {edge_of(edge): float(score) for edge, score in given.items()}


def _whole(node: Node) -> Node:
    """The node of a receiver: of a head's queries the head."""
    return Node(node.kind, node.layer, node.index, None, node.position, node.stack)


def _edge(edge: Edge, number: Mapping[Node, int], known: Mapping[Edge, float]) -> GraphEdge:
    sender, receiver = (number[_whole(node)] for node in edge)
    return GraphEdge(sender, receiver, edge_text(edge), known.get(edge), PORTS[edge[1].component])


def _level(node: Node) -> tuple[str, int, int]:
    """Stack, layer and place in the layer; the main stack is above the others."""
    last = node.kind == "logits"
    layer = 10**9 if last else -1 if node.layer is None else node.layer
    return ("~" if node.stack is None else node.stack, layer, LEVELS.get(node.kind, (0, ""))[0])


def _place(node: Node) -> tuple[tuple[str, int, int], int, int]:
    index = -1 if node.index is None else node.index
    return _level(node), index, -1 if node.position is None else node.position


def _lane(node: Node) -> int:
    return int(node.kind in ("mlp", "neuron"))


def _name(node: Node) -> str:
    words = LEVELS[node.kind][1] if node.kind in LEVELS else node.kind
    return f"{node.stack} {words.format(node.layer)}" if node.stack else words.format(node.layer)
