"""One line over positions as inline SVG."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lensbridge.viz.markup import Html, element, label, picture, plain

LEFT, TOP, RIGHT, BOTTOM = 46.0, 12.0, 14.0, 44.0


@dataclass(frozen=True)
class Curve:
    """Values over positions, from zero upwards.

    Args:
        title: what it shows, also for screen readers.
        values: one for each position.
        labels: a label for each position, shown as its tooltip.
        axes: names of the horizontal and the vertical axis.
        split: draw a line before this position, and name the two sides.
        sides: their names.
        reference: a level to compare with, and its name.
        size: width and height in pixels.
    """

    title: str
    values: Sequence[float]
    labels: Sequence[str]
    axes: tuple[str, str]
    split: int
    sides: tuple[str, str]
    reference: tuple[float, str]
    size: tuple[float, float] = (490, 280)

    def __post_init__(self) -> None:
        if len(self.values) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels for {len(self.values)} values.")
        if not all(0 <= value < math.inf for value in self.values):
            raise ValueError(f"{self.title!r} holds values that are negative or not finite.")

    def svg(self) -> Html:
        """The picture."""
        width, height = self.size
        return picture(
            self.title,
            "curve",
            width,
            height,
            *self._grid(),
            *self._split(),
            *self._reference(),
            *self._line(),
            *self._names(),
        )

    @property
    def top(self) -> float:
        """The value at the upper edge."""
        return math.ceil(max([*self.values, self.reference[0]]) * 1.05)

    def _x(self, position: float) -> float:
        step = (self.size[0] - LEFT - RIGHT) / max(1, len(self.values) - 1)
        return LEFT + position * step

    def _y(self, value: float) -> float:
        return self.size[1] - BOTTOM - value / self.top * (self.size[1] - TOP - BOTTOM)

    def _grid(self) -> Iterator[Html]:
        right = self.size[0] - RIGHT
        for value in range(0, int(self.top) + 1, max(1, int(self.top) // 6)):
            y = self._y(value)
            yield element("line", class_="rule", x1=LEFT, x2=right, y1=y, y2=y)
            yield label(str(value), LEFT - 6, y + 4, "end")
        for i in range(0, len(self.values), 5):
            yield label(str(i + 1), self._x(i), self.size[1] - BOTTOM + 16, "middle")

    def _split(self) -> Iterator[Html]:
        x, bottom = self._x(self.split - 0.5), self.size[1] - BOTTOM
        yield element("line", class_="split", x1=x, x2=x, y1=TOP, y2=bottom)
        yield label(self.sides[0], x - 8, TOP + 10, "end", kind="axis")
        yield label(self.sides[1], x + 8, TOP + 10, kind="axis")

    def _reference(self) -> Iterator[Html]:
        level, name = self.reference
        y, right = self._y(level), self.size[0] - RIGHT
        yield element("line", class_="reference", x1=LEFT, x2=right, y1=y, y2=y)
        yield label(name, right, y - 6, "end", kind="axis")

    def _line(self) -> Iterator[Html]:
        places = [(self._x(i), self._y(value)) for i, value in enumerate(self.values)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield element("polyline", class_="line", points=points)
        for (x, y), value, name in zip(places, self.values, self.labels, strict=True):
            tip = element("title", plain(f"{name}: {value:.3g} {self.axes[1]}"))
            yield element("circle", tip, class_="dot", cx=round(x, 1), cy=round(y, 1), r=3)

    def _names(self) -> Iterator[Html]:
        middle = (LEFT + self.size[0] - RIGHT) / 2
        yield label(self.axes[0], middle, self.size[1] - 8, "middle", kind="axis")
        yield label(self.axes[1], 14, self._y(self.top / 2), "middle", kind="axis", turn=-90)
