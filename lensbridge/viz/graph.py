"""A circuit as a graph: nodes by layer, edges as wide as their scores are large."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from lensbridge.errors import InputError
from lensbridge.viz.canvas import Canvas
from lensbridge.viz.graph_layout import HIGH, GraphEdge, GraphNode, Layout, points_of
from lensbridge.viz.graph_page import GraphPage, Stroke
from lensbridge.viz.heading import Heading
from lensbridge.viz.markup import Html
from lensbridge.viz.numbers import short
from lensbridge.viz.picture import Picture
from lensbridge.viz.theme import MINUS, PLUS

MOST_NODES, MOST_EDGES = 400, 500
THIN, THICK, EVEN = 0.8, 6.0, 1.4
FOOT = 24.0


@dataclass(frozen=True, eq=False, repr=False)
class CircuitGraph(Picture):
    """Nodes and edges. In a page: show the largest edges only, or follow those of one node.

    Args:
        title: what it shows, written above it.
        nodes: the nodes.
        edges: the edges; blue ones have positive scores, orange ones negative ones.
        levels: the name of each level.
        unit: what scores are measured in.

    Raises:
        InputError: nothing to draw, or too much, or a score that is not finite.
    """

    title: str
    nodes: Sequence[GraphNode]
    edges: Sequence[GraphEdge]
    levels: Mapping[int, str]
    unit: str = ""

    def __post_init__(self) -> None:
        counts = len(self.nodes), len(self.edges)
        if not counts[0] or counts[0] > MOST_NODES or counts[1] > MOST_EDGES:
            raise InputError(
                f"A graph of 1 to {MOST_NODES} nodes and up to {MOST_EDGES} edges is drawn, not "
                f"{counts[0]} nodes and {counts[1]} edges. Choose the largest: result.circuit(100)."
            )
        wrong = [one for one in self.edges if one.score is not None and not isfinite(one.score)]
        if wrong:
            raise InputError(f"{len(wrong)} scores are not finite numbers: {wrong[0].name}.")

    def __repr__(self) -> str:
        return f"CircuitGraph({self.title!r}, [node {len(self.nodes)}, edge {len(self.edges)}])"

    @cached_property
    def layout(self) -> Layout:
        """Where everything is."""
        used = {node.level for node in self.nodes}
        return Layout(self.nodes, {k: v for k, v in self.levels.items() if k in used}, 6.0)

    @cached_property
    def ranked(self) -> list[GraphEdge]:
        """The edges, the largest first."""
        return sorted(self.edges, key=lambda edge: -abs(edge.score or 0.0))

    @cached_property
    def _largest(self) -> float:
        return max([abs(edge.score or 0.0) for edge in self.edges], default=0.0) or 1.0

    def stroke(self, edge: GraphEdge) -> Stroke:
        """The colour and the width of an edge, and its text with the score."""
        if edge.score is None:
            return Stroke("", EVEN, edge.name)
        wide = THIN + (THICK - THIN) * abs(edge.score) / self._largest
        told = f"{edge.name}: {edge.score:+.4g} {self.unit}".strip()
        return Stroke(MINUS if edge.score < 0 else PLUS, wide, told.replace(" -", " \u2212"))

    @property
    def _key(self) -> str:
        if not any(edge.score is not None for edge in self.edges):
            return ""
        widest = f"{short(self._largest)} {self.unit}".strip()
        return f"Blue: positive scores, orange: negative ones. The widest edge: {widest}."

    def fragment(self) -> Html:
        """The graph as a piece of HTML that can stand in any page."""
        strokes = [self.stroke(edge) for edge in self.ranked]
        return GraphPage(self.title, self.layout, self.ranked, strokes, self._key).html()

    # --- in files ----------------------------------------------------------------------------

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, self.layout.size[0])

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        width, height = self.layout.size
        key = 16 + 6.6 * len(self._key)
        return max(width, self._heading.width, key), self._heading.height + height + FOOT

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        width, height = self.layout.size
        part = canvas.part(0, self._heading.height, width, height)
        self._draw_levels(part)
        for edge in reversed(self.ranked):
            stroke = self.stroke(edge)
            xs, ys = map(list, zip(*points_of(self.layout.curve(edge)), strict=True))
            colour = stroke.colour or canvas.theme.muted
            part.line(xs, ys, colour, thickness=stroke.width, strength=0.8)
        for i, (x, y) in self.layout.places.items():
            wide = self.layout.box_width(i)
            box = x - wide / 2, y - HIGH / 2, wide, HIGH
            part.box(*box, canvas.theme.paper, tip=self.nodes[i].name)
            part.box(*box, "", outline=canvas.theme.ink, thickness=1.0)
            part.text(self.nodes[i].name, x, y, "center")
        muted = canvas.theme.muted
        canvas.text(self._key, 4, self._heading.height + height + 10, colour=muted)

    def _draw_levels(self, part: Canvas) -> None:
        layout, said = self.layout, ""
        for row, (level, *_) in enumerate(layout.rows):
            y, name = layout.row_y(row), layout.levels.get(level, "")
            part.line([layout.left - 6, layout.size[0] - 4], [y, y], part.theme.rule)
            part.text("" if name == said else name, 4, y, colour=part.theme.muted)
            said = name
