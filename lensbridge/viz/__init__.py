"""Pictures: of results, or of any numbers with `plot`. No network, no browser needed.

A picture shows itself in a notebook, and `save` writes it as HTML, SVG, PNG or PDF. `to_plotly` and
`to_matplotlib` give it to these libraries.
"""

from lensbridge.viz.attention import AttentionView, attention
from lensbridge.viz.bars import Bars
from lensbridge.viz.cards import Card, CardText
from lensbridge.viz.drawing import plot
from lensbridge.viz.graph import CircuitGraph
from lensbridge.viz.graph_layout import GraphEdge, GraphNode
from lensbridge.viz.heatmap import Heatmap
from lensbridge.viz.histogram import Histogram
from lensbridge.viz.lines import Lines
from lensbridge.viz.markup import Html
from lensbridge.viz.panels import Panels
from lensbridge.viz.picture import Drawn, Picture
from lensbridge.viz.scale import Scale
from lensbridge.viz.text import text
from lensbridge.viz.tokens import ColouredText
from lensbridge.viz.tree import Tree

__all__ = [
    "AttentionView",
    "Bars",
    "Card",
    "CardText",
    "CircuitGraph",
    "ColouredText",
    "Drawn",
    "GraphEdge",
    "GraphNode",
    "Heatmap",
    "Histogram",
    "Html",
    "Lines",
    "Panels",
    "Picture",
    "Scale",
    "Tree",
    "attention",
    "plot",
    "text",
]
