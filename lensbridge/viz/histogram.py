"""How often values occur."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.frame import Frame, ticks
from lensbridge.viz.heading import Heading
from lensbridge.viz.numbers import short
from lensbridge.viz.picture import Picture
from lensbridge.viz.theme import PLUS


@dataclass(frozen=True, repr=False)
class Histogram(Picture):
    """How many values are in each of a number of intervals of the same width.

    Args:
        title: what it shows, written above it.
        values: the values; those that are not finite are left out.
        unit: what is measured, written below.
        bins: how many intervals; None: as numpy's rule "auto" says, 40 at most.
        measures: width and height in pixels.

    Raises:
        ValueError: there is no finite value.
    """

    title: str
    values: Sequence[float]
    unit: str = ""
    bins: int | None = None
    measures: tuple[float, float] = (420.0, 220.0)

    def __post_init__(self) -> None:
        if not any(map(math.isfinite, self.values)):
            raise ValueError(f"{self.title!r} has no finite value to draw.")

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        return self.measures

    @cached_property
    def counted(self) -> tuple[list[int], list[float]]:
        """How many values each interval has, and the edges, one more than intervals."""
        import numpy as np

        finite = np.asarray([value for value in self.values if math.isfinite(value)])
        edges = np.histogram_bin_edges(finite, self.bins or "auto")
        counts, edges = np.histogram(finite, self.bins or min(40, len(edges) - 1))
        return counts.tolist(), edges.tolist()

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, self.measures[0])

    @cached_property
    def _frame(self) -> Frame:
        counts, edges = self.counted
        first, each = edges[0], edges[1] - edges[0]
        marks = [at for at in ticks(first, edges[-1]) if first <= at <= edges[-1]]
        return Frame(
            self.size,
            self._heading.height,
            ticks(0.0, max(counts)),
            list(map(short, marks)),
            (self.unit, "count"),
            places=[(at - first) / each for at in marks],
            entries=len(edges),
        )

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        frame, (counts, edges) = self._frame, self.counted
        frame.draw(canvas)
        for i, count in enumerate(counts):
            top, left = frame.y(count), frame.x(i)
            tip = f"{short(edges[i])} to {short(edges[i + 1])}: {count}"
            canvas.box(left, top, frame.x(i + 1) - left - 1, frame.y(0) - top, PLUS, tip=tip)

    @property
    def figure(self) -> Any:
        """The picture for plotly: `data` and `layout` of a `plotly.graph_objects.Figure`."""
        counts, edges = self.counted
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        trace = {"type": "bar", "x": middles, "y": counts, "marker": {"color": PLUS}}
        axis = {"title": {"text": self.unit}}
        layout = {"title": {"text": self.title}, "xaxis": axis, "bargap": 0.02}
        return {"data": [trace], "layout": layout}
