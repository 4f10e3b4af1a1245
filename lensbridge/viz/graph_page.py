"""A circuit in a page, as SVG. `graph.js` makes it interactive; without it all is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from lensbridge.viz.graph_layout import HIGH, GraphEdge, Layout
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.picture import framed
from lensbridge.viz.scripts import script, style


@dataclass(frozen=True)
class Stroke:
    """How an edge is drawn.

    Args:
        colour: its colour; empty for the one of secondary text.
        width: in pixels.
        told: its text, with the score.
    """

    colour: str
    width: float
    told: str


@dataclass(frozen=True)
class GraphPage:
    """What the page shows.

    Args:
        title: written above it.
        layout: where everything is.
        edges: the edges, the largest first.
        strokes: how each is drawn.
        key: a line below it.
    """

    title: str
    layout: Layout
    edges: Sequence[GraphEdge]
    strokes: Sequence[Stroke]
    key: str

    def html(self) -> Html:
        """All of it, with its own style rules and script."""
        parts = [
            *([element("strong", plain(self.title))] if self.title else []),
            element("div", class_="lb-gr-tools"),
            element("div", self._svg(), class_="lb-gr-scroll"),
            element("div", plain(self.key), class_="lb-gr-key"),
            element("div", class_="lb-gr-told", role="status"),
            element("div", class_="lb-gr-tip", hidden="hidden"),
        ]
        root = element("div", *parts, class_="lb-gr", data_lb_graph="")
        return framed(root, script("graph.js"), style=style("graph.css"))

    def _svg(self) -> Html:
        width, height = self.layout.size
        head = (
            f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'role="group" style="min-width:{0.8 * width:.0f}px;max-width:100%;height:auto">'
        )
        name = f"{self.title or 'Circuit'}: {len(self.layout.nodes)} nodes, {len(self.edges)} edges"
        edges = [self._edge(rank) for rank in reversed(range(len(self.edges)))]
        nodes = [self._node(i) for i in self.layout.places]
        inner = [element("title", plain(name)), *self._levels(), *edges, *nodes]
        return Html(f"{head}{''.join(inner)}</svg>")

    def _levels(self) -> list[Html]:
        layout, made, said = self.layout, [], ""
        for row, (level, *_) in enumerate(layout.rows):
            y, name = layout.row_y(row), layout.levels.get(level, "")
            ends = {"x1": layout.left - 6, "x2": layout.size[0] - 4, "y1": y, "y2": y}
            made.append(element("line", class_="lb-gr-level", **ends))
            if name != said:
                made.append(_text(name, 4, y, "start", "lb-gr-name"))
            said = name
        return made

    def _edge(self, rank: int) -> Html:
        edge, stroke = self.edges[rank], self.strokes[rank]
        start, *others = self.layout.curve(edge)
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in others)
        return element(
            "path",
            element("title", plain(stroke.told)),
            class_="lb-gr-edge",
            d=f"M{start[0]:.1f},{start[1]:.1f}C{way}",
            style=f"stroke:{stroke.colour or 'var(--lb-muted)'}",
            stroke_width=f"{stroke.width:.2f}",
            data_from=edge.sender,
            data_to=edge.receiver,
            data_rank=rank,
        )

    def _node(self, which: int) -> Html:
        (x, y), wide = self.layout.places[which], self.layout.box_width(which)
        box = {"x": x - wide / 2, "y": y - HIGH / 2, "width": wide, "height": HIGH, "rx": 4}
        name = self.layout.nodes[which].name
        shapes = element("rect", **box), _text(name, x, y, "middle", "lb-gr-label")
        return element("g", *shapes, class_="lb-gr-node", data_node=which, data_name=name)


def _text(words: str, x: float, y: float, anchor: str, kind: str) -> Html:
    anchored = {"text_anchor": anchor, "dominant_baseline": "central", "class_": kind}
    return element("text", plain(words), x=x, y=y, **anchored)
