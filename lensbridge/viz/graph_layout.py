"""Where the nodes of a circuit stand, and how its edges run: layer above layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

from lensbridge.viz.labels import widest, width

Point: TypeAlias = tuple[float, float]

HIGH = 22.0  # of a node
GAP = 12.0  # between two nodes of a level
RISE, CLOSE_RISE = 56.0, 42.0  # from level to level; the second if there are many
MANY = 16
MOST_ACROSS = 12  # nodes in a row; a level that has more takes several rows
BEND = 76.0  # how far an edge bends around nodes, at most
PORT = 9.0  # from one input of a node to the next


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph.

    Args:
        name: its text.
        level: its level; lower ones are below.
        lane: 0 for the left column (heads), 1 for the right one (MLPs).
    """

    name: str
    level: int
    lane: int = 0


@dataclass(frozen=True)
class GraphEdge:
    """An edge of a graph.

    Args:
        sender: the number of the node where it starts.
        receiver: the number of the node where it ends.
        name: its text.
        score: its score; None if it has none.
        port: where it enters the receiver: -1 left, 0 in the middle, 1 right.
    """

    sender: int
    receiver: int
    name: str
    score: float | None = None
    port: int = 0


@dataclass(frozen=True)
class Layout:
    """Places in pixels; `y` goes downwards.

    Args:
        nodes: the nodes.
        levels: the name of each level that has nodes.
        top: the room above.
    """

    nodes: Sequence[GraphNode]
    levels: dict[int, str]
    top: float

    @cached_property
    def rows(self) -> list[tuple[int, list[int], list[int]]]:
        """Level, nodes of the left lane and of the right lane, from the lowest row up."""
        order = sorted(range(len(self.nodes)), key=lambda i: self.nodes[i].level)
        found = []
        for level, members in groupby(order, key=lambda i: self.nodes[i].level):
            lanes: tuple[list[int], list[int]] = ([], [])
            for i in members:
                lanes[self.nodes[i].lane].append(i)
            for start in range(0, max(map(len, lanes)), MOST_ACROSS):
                part = slice(start, start + MOST_ACROSS)
                found.append((level, lanes[0][part], lanes[1][part]))
        return found

    @property
    def left(self) -> float:
        """The room for the names of the levels."""
        return widest(list(self.levels.values())) + 18

    def box_width(self, node: int) -> float:
        """The width of a node."""
        return max(38.0, width(self.nodes[node].name) + 12)

    def _wide(self, members: Sequence[int]) -> float:
        return sum(self.box_width(i) + GAP for i in members)

    @cached_property
    def lanes(self) -> tuple[float, float]:
        """The widths of both columns."""
        sides = zip(*((self._wide(a), self._wide(b)) for _, a, b in self.rows), strict=True)
        first, second = map(max, sides)
        return max(first, 140.0), second + (BEND if second else 0.0)

    @property
    def rise(self) -> float:
        """The distance from one row to the next."""
        return CLOSE_RISE if len(self.rows) > MANY else RISE

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the graph with its levels."""
        return self.left + sum(self.lanes) + 8, self.top + len(self.rows) * self.rise

    @cached_property
    def places(self) -> dict[int, Point]:
        """The middle of each node."""
        found: dict[int, Point] = {}
        for row, (_, *lanes) in enumerate(self.rows):
            starts = self.left, self.left + self.lanes[0]
            for start, room, members in zip(starts, self.lanes, lanes, strict=True):
                x = start + (room - self._wide(members) + GAP) / 2
                for i in members:
                    found[i] = (x + self.box_width(i) / 2, self.row_y(row))
                    x += self.box_width(i) + GAP
        return found

    def row_y(self, row: int) -> float:
        """The height of a row, counted from the lowest."""
        return self.top + (len(self.rows) - row - 0.5) * self.rise

    def curve(self, edge: GraphEdge) -> tuple[Point, Point, Point, Point]:
        """Start, two control points and end of an edge.

        An edge that goes straight up past other rows bends around the nodes between.
        """
        (x1, y1), (x2, y2) = self.places[edge.sender], self.places[edge.receiver]
        x2, y1, y2 = x2 + PORT * edge.port, y1 - HIGH / 2, y2 + HIGH / 2
        rows = (y1 - y2) / self.rise
        bend = 0.0
        if rows > 1 and abs(x1 - x2) < 40:
            bend = (1.0 if self.nodes[edge.sender].lane else -1.0) * min(BEND, 26 + 8 * rows)
        pull = 0.42 * (y1 - y2)
        return (x1, y1), (x1 + bend, y1 - pull), (x2 + bend, y2 + pull), (x2, y2)


def points_of(curve: tuple[Point, Point, Point, Point], count: int = 28) -> list[Point]:
    """Points along a cubic Bézier curve.

    Example:
        >>> points_of(((0, 0), (0, 1), (1, 1), (1, 2)), 3)
        [(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)]
    """
    made = []
    for i in range(count):
        t = i / (count - 1)
        shares = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        x, y = (sum(s * p[k] for s, p in zip(shares, curve, strict=True)) for k in (0, 1))
        made.append((float(x), float(y)))
    return made
