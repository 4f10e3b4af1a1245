"""Circuit: the parts of a model that are claimed to do a task."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from lensbridge.causal.circuit_picture import Scores, graph_of
from lensbridge.causal.edge import Edge, edge_of, edge_text
from lensbridge.errors import InputError
from lensbridge.nodes.node import Node, NodeLike
from lensbridge.viz import CircuitGraph, Drawn
from lensbridge.viz.picture import SUFFIXES

SHOWN = 8
"""How many parts the text of a circuit names."""


@dataclass(frozen=True, repr=False)
class Circuit(Drawn):
    """Some nodes, or some edges, of a model.

    Args:
        nodes: its nodes, if it is made of nodes.
        edges: its edges, if it is made of edges.

    Example:
        >>> circuit = Circuit.of(["a0.h1", "m3"])
        >>> Circuit.from_json(circuit.to_json()) == circuit, len(circuit)
        (True, 2)
        >>> Circuit.of(["a0.h1->a2.h3<k>", "input->a0.h1<v>"]).kind
        'edges'
    """

    nodes: frozenset[Node] = frozenset()
    edges: frozenset[Edge] = frozenset()

    def __post_init__(self) -> None:
        if self.nodes and self.edges:
            raise InputError(
                "A circuit is made of nodes or of edges, not of both: a node stands for all of its "
                "edges."
            )

    @classmethod
    def of(cls, parts: "CircuitLike") -> "Circuit":
        """A circuit from one node or several nodes or edges, as objects or text, also with scores.

        Raises:
            InputError: nodes and edges together, or something else.
        """
        if isinstance(parts, Circuit):
            return parts
        if isinstance(parts, str | Node):
            parts = [parts]
        if not isinstance(parts, Iterable):
            raise InputError(
                "A circuit is made from nodes or edges, as ['a2.h1', 'm0'] or result.circuit(10), "
                f"not from {parts!r}."
            )
        nodes, edges = set(), set()
        for part in parts:
            bare = _without_score(part)
            if isinstance(bare, Node) or (isinstance(bare, str) and "->" not in bare):
                nodes.add(Node.of(bare))
            else:
                edges.add(edge_of(bare))
        return cls(frozenset(nodes), frozenset(edges))

    @property
    def kind(self) -> str:
        """ "nodes" or "edges"."""
        return "edges" if self.edges else "nodes"

    @property
    def parts(self) -> frozenset[Node] | frozenset[Edge]:
        """Its nodes or edges."""
        return self.edges or self.nodes

    @property
    def labels(self) -> list[str]:
        """The text of its parts, sorted, with layers and heads in numerical order."""
        return sorted([*map(str, self.nodes), *map(edge_text, self.edges)], key=_by_size)

    @property
    def heads(self) -> set[tuple[int, int]]:
        """Layer and head of the main stack's heads in it: nodes, or the senders of edges."""
        written = [*self.nodes, *(sender for sender, _ in self.edges)]
        heads = [node for node in written if node.kind == "head" and node.stack is None]
        return {(n.layer, n.index) for n in heads if n.layer is not None and n.index is not None}

    def __repr__(self) -> str:
        labels = self.labels
        shown = ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
        return f"Circuit({len(self)} {self.kind}{': ' if labels else ''}{shown})"

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, part: Any) -> bool:
        return bool(Circuit.of([part]).parts <= self.parts)

    def __sub__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.nodes - other.nodes, self.edges - other.edges)

    def __or__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.nodes | other.nodes, self.edges | other.edges)

    def __and__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.nodes & other.nodes, self.edges & other.edges)

    def plot(self, scores: Scores | None = None, *, title: str = "") -> CircuitGraph:
        """A graph: nodes by layer, from the input up; edges as wide as their scores are large.

        Args:
            scores: scores of its edges: the result that the circuit was taken from, or a mapping
                from edges to numbers. An edge without a score is grey.
            title: written above it; if empty, how many parts there are.

        Raises:
            InputError: the circuit is empty, or too large for a picture.

        Example:
            >>> Circuit.of(["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]).plot()
            CircuitGraph('Circuit of 3 edges', [node 4, edge 3])
        """
        return graph_of(
            self.nodes, self.edges, scores, title or f"Circuit of {len(self)} {self.kind}"
        )

    # --- elsewhere ---------------------------------------------------------------------------

    def to_json(self) -> str:
        """The circuit as JSON, for `from_json`."""
        return json.dumps({"kind": self.kind, self.kind: self.labels}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Circuit":
        """A circuit from the JSON that `to_json` wrote.

        Raises:
            InputError: other text.
        """
        try:
            found = json.loads(text)
            return cls.of(found[found["kind"]])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"This is not the JSON of a circuit: {error}") from error

    def save(self, path: str | PathLike[str], **options: Any) -> Path:
        """Write it to a file: as JSON, for `load`; or its picture.

        Args:
            path: the file. One that ends in `.html`, `.svg`, `.png` or `.pdf` gets the picture.
            options: those of `plot`, for a picture.

        Returns:
            The path.
        """
        path = Path(path)
        if path.suffix.lower() in SUFFIXES:
            return super().save(path, **options)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read it from a file."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _by_size(text: str) -> list[str | int]:
    return [int(one) if one.isdigit() else one for one in re.split(r"(\d+)", text)]


CircuitLike = Circuit | Node | str | Iterable[NodeLike | Edge | tuple[Any, ...]]
"""A circuit, or nodes or edges to make one from, also with their scores."""


def _without_score(part: Any) -> Any:
    """A node or edge without the score that `top` of a result returns with it."""
    if isinstance(part, tuple) and part and isinstance(part[-1], float):
        return part[0] if len(part) == 2 else part[:-1]
    return part
