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
from lensbridge.nodes.node import Node
from lensbridge.nodes.units import UNITS
from lensbridge.sweeps.grid import pandas
from lensbridge.viz import Heatmap
from lensbridge.viz.grid import heatmap_of

Granularity = Literal["node", "edge"]
"""What has a score."""

Order = Literal["abs", "high", "low"]
"""Largest first: by absolute score, highest first, or lowest first."""


@dataclass(frozen=True, eq=False)
class AttributionResult:
    """Estimates of what patching each part of the model does to the metric.

    Args:
        scores: a tensor for each unit, with the axes that `axis_names` says; NaN where there is
            no such part. Edges are one tensor, "edge", `[sender, receiver, position?, example?]`.
        axis_names: names of each tensor's axes.
        granularity: "node" or "edge".
        baseline: the metric of the run that values are put into, `[]` or `[example]`.
        target: the metric of the run that they come from, likewise.
        senders: what the first axis of edges counts.
        receivers: what the second counts.
        stack: prefix of the nodes' stack; None for the main one.
        signed: whether scores have signs; with `grad_drop` they are magnitudes.

    Units: each score is in the metric's: an estimate of the patched run's metric less `baseline`.
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

    def __repr__(self) -> str:
        parts = []
        for unit, tensor in self.scores.items():
            pairs = zip(self.axis_names[unit], tensor.shape, strict=True)
            parts.append(f"{unit} [{', '.join(f'{name} {n}' for name, n in pairs)}]")
        return f"AttributionResult({'; '.join(parts)})"

    def __getitem__(self, unit: str) -> Tensor:
        """The tensor of one unit.

        Raises:
            InputError: it was not asked for.
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
        """Every node or edge that there is, with its score; examples are averaged."""
        tables = [self.mean(unit).detach().cpu() for unit in self.scores]
        values = [value for table in tables for value in table[~table.isnan()].tolist()]
        return list(zip(self._places, values, strict=True))

    @cached_property
    def _places(self) -> dict[Node | Edge, tuple[str, tuple[int, ...]]]:
        """The unit of each part, and where it is in that unit's tensor."""
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
            InputError: there is no such part among those that were scored.
        """
        if isinstance(part, str):
            part = edge_of(part) if "->" in part else Node.of(part)
        if part not in self._places:
            raise InputError(
                f"{text_of(part)} was not scored; {len(self._places)} {self.granularity}s were, as "
                f"{', '.join(self.labels[:3])}."
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
        """Scores by node; of edges, the sum of those that leave each sender."""
        if self.granularity == "node":
            return {part: score for part, score in self.entries if isinstance(part, Node)}
        totals: dict[Node, float] = {}
        for (sender, _), score in self.edge_scores.items():
            totals[sender] = totals.get(sender, 0.0) + score
        return totals

    @property
    def edge_scores(self) -> dict[Edge, float]:
        """Scores by edge; empty for nodes."""
        return {part: score for part, score in self.entries if isinstance(part, tuple)}

    # --- the largest -------------------------------------------------------------------------

    def top(self, k: int = 10, by: Order = "abs") -> list[tuple[str, float]]:
        """The k entries of largest absolute (or highest, or lowest) score, as text.

        Raises:
            InputError: another `by`, or k below 0.
        """
        return [(text_of(part), score) for part, score in _largest(self.entries, k, by)]

    def top_nodes(self, k: int = 10, by: Order = "abs") -> list[tuple[Node, float]]:
        """The k nodes of largest score."""
        return _largest(list(self.node_scores.items()), k, by)

    def top_edges(self, k: int = 10, by: Order = "abs") -> list[tuple[Node, Node, float]]:
        """The k edges of largest score: sender, receiver, score.

        Raises:
            InputError: nodes were scored.
        """
        if self.granularity != "edge":
            raise InputError("Nodes were scored, not edges: attribute with granularity='edge'.")
        return [(*edge, score) for edge, score in _largest(list(self.edge_scores.items()), k, by)]

    def circuit(self, k: int = 10, by: Order = "abs") -> Circuit:
        """The k entries of largest score as a circuit, for `faithfulness` and `prune_circuit`."""
        return Circuit.of([part for part, _ in _largest(self.entries, k, by)])

    # --- elsewhere ---------------------------------------------------------------------------

    def example(self, index: int) -> "AttributionResult":
        """The scores of one example, where they were kept.

        Raises:
            InputError: they were not, or there is no such example.
        """
        if any(names[-1:] != ("example",) for names in self.axis_names.values()):
            raise InputError("The scores are of no example alone: pass reduce='none'.")
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
        self, unit: str | None = None, *, title: str = "", digits: int | None = None
    ) -> Heatmap:
        """One unit's scores as a heatmap, averaged over examples; its `svg()` is the picture.

        The last axis goes from left to right, all others together from top to bottom.

        Args:
            unit: which; None where there is one.
            title: above the picture; where it is empty, the unit.
            digits: decimals written into the cells; None writes none.

        Raises:
            InputError: no such unit, several to choose from, or more than a picture holds.
        """
        if unit is None and len(self.scores) > 1:
            raise InputError(f"Which unit is to be drawn? There are {', '.join(self.scores)}.")
        unit = next(iter(self.scores)) if unit is None else unit
        table = self.mean(unit).detach().cpu()
        names = [name for name in self.axis_names[unit] if name != "example"] or ["position"]
        table = table if table.ndim else table.unsqueeze(0)
        axes = {name: self._entries(name, n) for name, n in zip(names, table.shape, strict=True)}
        return heatmap_of(
            table,
            axes,
            title or unit,
            digits=digits,
            advice="Draw it without positions, or lensbridge.viz.Heatmap of a part of it.",
        )

    def _entries(self, axis: str, size: int) -> list[str]:
        """What the entries of an axis are called."""
        ends = {"sender": self.senders, "receiver": self.receivers}
        return [str(one) for one in ends[axis]] if axis in ends else [str(i) for i in range(size)]

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each entry.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return pandas().DataFrame([_record(part, score) for part, score in self.entries])


def text_of(part: Node | Edge) -> str:
    """A node or edge in text."""
    return str(part) if isinstance(part, Node) else edge_text(part)


def _largest(entries: list[tuple[Any, float]], k: int, by: Order) -> list[tuple[Any, float]]:
    keys: dict[str, Any] = {"abs": abs, "high": lambda x: x, "low": lambda x: -x}
    if by not in keys:
        raise InputError(f"by is 'abs', 'high' or 'low', not {by!r}.")
    if not isinstance(k, int) or k < 0:
        raise InputError(f"k={k!r}: how many to give.")
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
