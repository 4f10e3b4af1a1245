"""AttributionResult: an estimated effect for every node or edge, with names on its axes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.causal.circuit import Circuit
from lensbridge.causal.edge import Edge, at_position, edge_of, edge_text
from lensbridge.errors import InputError
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.nodes.node import Node
from lensbridge.nodes.units import UNITS
from lensbridge.sweeps.grid import pandas
from lensbridge.viz import CircuitGraph, Drawn, Heatmap, Panels
from lensbridge.viz.drawing import heatmap_of
from lensbridge.viz.heatmap import Digits

Granularity = Literal["node", "edge"]
"""What has a score."""

Order = Literal["abs", "high", "low"]
"""Largest first: by absolute score, highest first, or lowest first."""


@dataclass(frozen=True, eq=False)
class AttributionResult(Drawn):
    """Estimates of the effect on the metric of patching each part of the model.

    Args:
        scores: a tensor for each unit, with the axes in `axis_names` and NaN where there is no such
            part. Edges are one tensor, "edge", `[sender, receiver, position?, example?]`.
        axis_names: names of the axes of each tensor.
        granularity: "node" or "edge".
        baseline: the metric of the run that is patched, `[]` or `[example]`.
        target: the metric of the run that the values come from, likewise.
        senders: the nodes along the first axis of edges.
        receivers: the nodes along the second axis.
        stack: prefix of the nodes' stack; None for the main one.
        signed: whether scores have signs; with `grad_drop` they are magnitudes.
        positions: the tokens of the run that is patched, as labels of positions.

    Units: those of the metric; a score estimates the metric of the patched run minus `baseline`.
    """

    scores: Mapping[str, Tensor]
    axis_names: Mapping[str, tuple[str, ...]]
    granularity: Granularity
    baseline: Tensor
    target: Tensor
    senders: tuple[Node, ...] = ()
    receivers: tuple[Node, ...] = ()
    stack: str | None = None
    signed: bool = True
    positions: PositionLabels | None = None

    def __repr__(self) -> str:
        parts = []
        for unit, tensor in self.scores.items():
            pairs = zip(self.axis_names[unit], tensor.shape, strict=True)
            parts.append(f"{unit} [{', '.join(f'{name} {n}' for name, n in pairs)}]")
        return f"AttributionResult({'; '.join(parts)})"

    def __getitem__(self, unit: str) -> Tensor:
        """The tensor of one unit.

        Raises:
            InputError: the unit was not scored.
        """
        if unit not in self.scores:
            raise InputError(f"There are scores for {', '.join(self.scores)}, not for {unit!r}.")
        return self.scores[unit]

    def mean(self, unit: str) -> Tensor:
        """A unit's scores, averaged over examples where they were kept."""
        scores = self[unit]
        return scores.mean(-1) if self.axis_names[unit][-1:] == ("example",) else scores

    # --- one by one --------------------------------------------------------------------------

    @cached_property
    def entries(self) -> list[tuple[Node | Edge, float]]:
        """Every node or edge with its score, averaged over examples."""
        tables = [self.mean(unit).detach().cpu() for unit in self.scores]
        values = [value for table in tables for value in table[~table.isnan()].tolist()]
        return list(zip(self._places, values, strict=True))

    @cached_property
    def _places(self) -> dict[Node | Edge, tuple[str, tuple[int, ...]]]:
        """The unit of each part, and its index in the tensor of that unit."""
        found: dict[Node | Edge, tuple[str, tuple[int, ...]]] = {}
        for unit in self.scores:
            there = ~self.mean(unit).detach().cpu().isnan()
            for place in map(tuple, there.nonzero().tolist()):
                named = dict(zip(self.axis_names[unit], place, strict=False))
                found[self._part(unit, named)] = (unit, place)
        return found

    def score(self, part: "Node | Edge | str") -> Tensor:
        """The score of one part.

        Args:
            part: a node ("a2.h1") or an edge ("a0.h1->a2.h1<k>").

        Shapes: `[]`, or `[example]` where examples were kept.

        Raises:
            InputError: the part was not scored.
        """
        if isinstance(part, str):
            part = edge_of(part) if "->" in part else Node.of(part)
        if part not in self._places:
            raise InputError(
                f"{text_of(part)} was not scored; {len(self._places)} {self.granularity}s were, "
                f"such as {', '.join(self.labels[:3])}."
            )
        unit, place = self._places[part]
        return self[unit][place]

    def _part(self, unit: str, place: Mapping[str, int]) -> Node | Edge:
        position = place.get("position")
        if unit == "edge":
            ends = self.senders[place["sender"]], self.receivers[place["receiver"]]
            return at_position(ends, position)
        row = UNITS[unit]
        index = None if row.index is None else place[row.index]
        return Node(row.kind, place.get("layer"), index, row.component, position, self.stack)

    @property
    def labels(self) -> list[str]:
        """The text of every entry."""
        return [text_of(part) for part, _ in self.entries]

    @property
    def values(self) -> Tensor:
        """The score of every entry, in the order of `labels`."""
        return torch.tensor([score for _, score in self.entries])

    @property
    def node_scores(self) -> dict[Node, float]:
        """Scores by node; where edges were scored, the sum over the edges of each sender."""
        if self.granularity == "node":
            return {part: score for part, score in self.entries if isinstance(part, Node)}
        totals: dict[Node, float] = {}
        for (sender, _), score in self.edge_scores.items():
            totals[sender] = totals.get(sender, 0.0) + score
        return totals

    @property
    def edge_scores(self) -> dict[Edge, float]:
        """Scores by edge; empty where nodes were scored."""
        return {part: score for part, score in self.entries if isinstance(part, tuple)}

    # --- the largest -------------------------------------------------------------------------

    def top(self, k: int = 10, by: Order = "abs") -> list[tuple[str, float]]:
        """The text of the k entries with the largest absolute (or highest, or lowest) scores.

        Raises:
            InputError: an unknown `by`, or k below 0.
        """
        return [(text_of(part), score) for part, score in _largest(self.entries, k, by)]

    def top_nodes(self, k: int = 10, by: Order = "abs") -> list[tuple[Node, float]]:
        """The k nodes with the largest scores."""
        return _largest(list(self.node_scores.items()), k, by)

    def top_edges(self, k: int = 10, by: Order = "abs") -> list[tuple[Node, Node, float]]:
        """The k edges with the largest scores: sender, receiver, score.

        Raises:
            InputError: nodes were scored.
        """
        if self.granularity != "edge":
            raise InputError("Nodes were scored, not edges: pass granularity='edge'.")
        return [(*edge, score) for edge, score in _largest(list(self.edge_scores.items()), k, by)]

    def circuit(self, k: int = 10, by: Order = "abs") -> Circuit:
        """The k entries with the largest scores as a circuit."""
        return Circuit.of([part for part, _ in _largest(self.entries, k, by)])

    # --- elsewhere ---------------------------------------------------------------------------

    def example(self, index: int) -> "AttributionResult":
        """The scores of one example, if they were kept.

        Raises:
            InputError: they were not kept, or there is no such example.
        """
        if any(names[-1:] != ("example",) for names in self.axis_names.values()):
            raise InputError("Scores of single examples were not kept: pass reduce='none'.")
        if not -len(self.baseline) <= index < len(self.baseline):
            raise InputError(f"Example {index}: there are {len(self.baseline)} examples.")
        return replace(
            self,
            scores={unit: table[..., index] for unit, table in self.scores.items()},
            axis_names={unit: names[:-1] for unit, names in self.axis_names.items()},
            baseline=self.baseline[index],
            target=self.target[index],
        )

    def plot(
        self, unit: str | None = None, *, title: str = "", digits: Digits = "auto"
    ) -> Heatmap | Panels:
        """A heatmap of one unit's scores, averaged over examples, or of every unit's.

        The last axis goes from left to right, the others together from top to bottom.

        Args:
            unit: which unit; None: each of them.
            title: title of the picture; if empty, the unit.
            digits: decimals written into the cells; "auto" chooses them, None writes no numbers.

        Raises:
            InputError: no such unit, or too many entries.
        """
        if unit is not None or len(self.scores) == 1:
            return self._heatmap(unit or next(iter(self.scores)), title, digits)
        return Panels(title, [self._heatmap(one, "", digits) for one in self.scores])

    def _heatmap(self, unit: str, title: str, digits: Digits) -> Heatmap:
        table = self.mean(unit).detach().cpu()
        names = [name for name in self.axis_names[unit] if name != "example"]
        table = table if table.ndim else table.unsqueeze(0)
        axes = {name: self._entries(name, n) for name, n in zip(names, table.shape, strict=False)}
        return heatmap_of(
            table,
            axes or {"": [unit]},
            title or unit,
            digits=digits,
            advice="Score without positions, or draw a part with lensbridge.viz.Heatmap.",
        )

    def plot_circuit(self, k: int = 50, by: Order = "abs", *, title: str = "") -> CircuitGraph:
        """The k edges with the largest scores as a graph: nodes by layer, width by score.

        Args:
            k: how many edges.
            by: "abs", "high" or "low".
            title: written above it.

        Raises:
            InputError: nodes were scored, or k is too large for a picture.
        """
        if self.granularity != "edge":
            raise InputError("Nodes were scored, not edges: pass granularity='edge'.")
        return self.circuit(k, by).plot(self, title=title)

    def _entries(self, axis: str, size: int) -> list[str]:
        """Labels for the entries of an axis."""
        if axis == "position" and self.positions is not None:
            return self.positions.along(range(size))
        ends = {"sender": self.senders, "receiver": self.receivers}
        return [str(one) for one in ends[axis]] if axis in ends else [str(i) for i in range(size)]

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each entry.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return pandas().DataFrame([_record(part, score) for part, score in self.entries])


def text_of(part: Node | Edge) -> str:
    """The text of a node or edge."""
    return str(part) if isinstance(part, Node) else edge_text(part)


def _largest(entries: list[tuple[Any, float]], k: int, by: Order) -> list[tuple[Any, float]]:
    keys: dict[str, Any] = {"abs": abs, "high": lambda x: x, "low": lambda x: -x}
    if by not in keys:
        raise InputError(f"by is 'abs', 'high' or 'low', not {by!r}.")
    if not isinstance(k, int) or k < 0:
        raise InputError(f"k is a number of entries, 0 or more, not {k!r}.")
    return sorted(entries, key=lambda one: -keys[by](one[1]))[:k]


def _record(part: Node | Edge, score: float) -> dict[str, Any]:
    ends = [part] if isinstance(part, Node) else list(part)
    named = {"node": ends[0]} if len(ends) == 1 else {"sender": ends[0], "receiver": ends[1]}
    row: dict[str, Any] = {name: str(node.anywhere) for name, node in named.items()}
    for name, node in named.items():
        front = "" if len(ends) == 1 else f"{name}_"
        row.update({f"{front}layer": node.layer, f"{front}index": node.index})
    if ends[0].position is not None:
        row["position"] = ends[0].position
    return {**row, "score": score}
