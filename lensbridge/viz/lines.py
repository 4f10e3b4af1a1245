"""Values over layers or positions, as lines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lensbridge.viz.canvas import Canvas, Side
from lensbridge.viz.frame import Frame, ticks
from lensbridge.viz.heading import Heading
from lensbridge.viz.labels import label_of, shortened, width
from lensbridge.viz.picture import Picture
from lensbridge.viz.theme import SERIES

LONGEST = 90.0  # of a label in pixels
MOST_DOTS = 400


@dataclass(frozen=True, repr=False)
class Lines(Picture):
    """One or several lines over the same labels.

    Args:
        title: what it shows, written above it.
        series: the values of each line by its name; None or NaN leaves a gap.
        x: a label for each place: layers, tokens.
        axes: names of the horizontal and the vertical axis.
        errors: half the height of a band around a line, by the line's name.
        reference: a level to compare with, and its name.
        split: draw a line before this place, with a name for each side.
        measures: width and height in pixels.

    Raises:
        ValueError: a line with another number of values than there are labels, or no value.
    """

    title: str
    series: Mapping[str, Sequence[float | None]]
    x: Sequence[str]
    axes: tuple[str, str] = ("", "")
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    reference: tuple[float, str] | None = None
    split: tuple[int, str, str] | None = None
    measures: tuple[float, float] = (560.0, 300.0)

    def __post_init__(self) -> None:
        for name, values in {**self.series, **self.errors}.items():
            if len(values) != len(self.x):
                raise ValueError(f"{name!r} has {len(values)} values for {len(self.x)} labels.")
        if not self._finite:
            raise ValueError(f"{self.title!r} has no finite value to draw.")

    @cached_property
    def _finite(self) -> list[float]:
        values = [v for line in self.series.values() for v in line]
        return [v for v in values if v is not None and math.isfinite(v)]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        return self.measures

    @cached_property
    def colours(self) -> dict[str, str]:
        """The colour of each line."""
        return {name: SERIES[i % len(SERIES)] for i, name in enumerate(self.series)}

    @cached_property
    def _heading(self) -> Heading:
        several = list(self.colours.items()) if len(self.series) > 1 else []
        return Heading(self.title, self.measures[0], several)

    @cached_property
    def frame(self) -> Frame:
        """The axes."""
        spread = [error for line in self.errors.values() for error in line] or [0.0]
        level = [self.reference[0]] if self.reference else []
        low = min([*self._finite, *level]) - max(spread)
        high = max([*self._finite, *level]) + max(spread)
        low = 0.0 if 0 <= low < high / 2 else low
        names = [shortened(label_of(entry), LONGEST) for entry in self.x]
        top = self._heading.height + 4
        return Frame(self.size, top, ticks(low, high), names, self.axes, inset=0.25)

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        self.frame.draw(canvas)
        self._draw_reference(canvas)
        self._draw_split(canvas)
        for name, values in self.series.items():
            self._draw_line(canvas, name, values)

    def _draw_reference(self, canvas: Canvas) -> None:
        if self.reference:
            level, name = self.reference
            y, right = self.frame.y(level), self.frame.right
            canvas.line([self.frame.left, right], [y, y], canvas.theme.muted, dashed=True)
            x, y, align = self._free_place(y, width(name))
            canvas.text(name, x, y, align, colour=canvas.theme.muted)

    def _free_place(self, level: float, wide: float) -> tuple[float, float, Side]:
        """Where along a level a text of some width is farthest from the lines."""
        left, right = self.frame.left + 4, self.frame.right
        sides: tuple[tuple[float, Side], ...] = ((right, "right"), (left, "left"))
        places = [(x, level + up, side) for x, side in sides for up in (-8.0, 9.0)]

        def distance(place: tuple[float, float, Side]) -> float:
            x, y, side = place
            start = x - wide if side == "right" else x
            return min(
                (abs(b - y) for a, b in self._dots if start - 9 < a < start + wide + 9), default=99
            )

        return max(places, key=lambda place: min(distance(place), 20.0))

    @cached_property
    def _dots(self) -> list[tuple[float, float]]:
        """The places of all finite values."""
        return [
            (self.frame.x(i), self.frame.y(value))
            for line in self.series.values()
            for i, value in enumerate(line)
            if value is not None and math.isfinite(value)
        ]

    def _draw_split(self, canvas: Canvas) -> None:
        if self.split:
            at, before, after = self.split
            x, top = self.frame.x(at - 0.5), self.frame.top
            canvas.line([x, x], [top, self.frame.bottom], canvas.theme.muted, dashed=True)
            canvas.text(before, x - 8, top + 8, "right", colour=canvas.theme.muted)
            canvas.text(after, x + 8, top + 8, colour=canvas.theme.muted)

    def _draw_line(self, canvas: Canvas, name: str, values: Sequence[float | None]) -> None:
        colour = self.colours[name]
        numbers = [v if v is not None and math.isfinite(v) else math.nan for v in values]
        xs = [self.frame.x(i) for i in range(len(numbers))]
        if name in self.errors:
            bands = list(zip(numbers, self.errors[name], strict=True))
            low = [self.frame.y(v - e) for v, e in bands]
            canvas.area(xs, low, [self.frame.y(v + e) for v, e in bands], colour)
        canvas.line(xs, [self.frame.y(v) for v in numbers], colour, thickness=2)
        if len(self.series) * len(numbers) > MOST_DOTS:
            return
        for x, value, entry in zip(xs, numbers, self.x, strict=True):
            if not math.isnan(value):
                place = " ".join(filter(None, (name, self.axes[0], label_of(entry))))
                tip = f"{place}: {value:.4g}"
                canvas.dot(x, self.frame.y(value), colour, tip=tip)

    @property
    def figure(self) -> Any:
        """The picture for plotly: `data` and `layout` of a `plotly.graph_objects.Figure`."""
        places = list(range(len(self.x)))
        data = [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": places,
                "y": list(values),
                "text": list(self.frame.names),
                "hovertemplate": f"%{{text}}: %{{y:.4g}}<extra>{name}</extra>",
                "line": {"color": self.colours[name]},
                "error_y": {"array": list(self.errors[name])} if name in self.errors else None,
            }
            for name, values in self.series.items()
        ]
        axis = {"title": {"text": self.axes[0]}, "tickvals": places}
        return {
            "data": data,
            "layout": {
                "title": {"text": self.title},
                "xaxis": {**axis, "ticktext": list(self.frame.names)},
                "yaxis": {"title": {"text": self.axes[1]}},
            },
        }
