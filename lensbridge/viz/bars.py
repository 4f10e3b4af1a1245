"""Numbers with names, as horizontal bars from zero."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.frame import ticks
from lensbridge.viz.heading import Heading
from lensbridge.viz.labels import label_of, shortened, widest
from lensbridge.viz.numbers import rounded, short
from lensbridge.viz.picture import Picture
from lensbridge.viz.theme import MINUS, PLUS

ROW = 20.0
PLOT = 300.0  # width of the bars' area
LONGEST = 200.0  # of a label in pixels


@dataclass(frozen=True, repr=False)
class Bars(Picture):
    """One bar for each name, to the right if positive and to the left if negative.

    Args:
        title: what it shows, written above it.
        values: a number for each bar.
        labels: its name.
        unit: what is measured, written below.
        errors: half the length of a line over the end of a bar, for instance a standard error.
        remarks: a few words after each number.

    Raises:
        ValueError: another number of labels than of values, none at all, or a value that is not
            a finite number.
    """

    title: str
    values: Sequence[float]
    labels: Sequence[str]
    unit: str = ""
    errors: Sequence[float] | None = None
    remarks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for others in (self.labels, self.errors, self.remarks):
            if others is not None and len(others) != len(self.values):
                raise ValueError(f"{len(others)} entries for {len(self.values)} bars.")
        if not self.values:
            raise ValueError(f"{self.title!r} has no bar.")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"{self.title!r} has values that are not finite numbers.")

    @cached_property
    def _names(self) -> list[str]:
        return [shortened(label_of(entry), LONGEST) for entry in self.labels]

    @cached_property
    def _written(self) -> list[str]:
        remarks = self.remarks or [""] * len(self.values)
        pairs = zip(self.values, remarks, strict=True)
        return [f"{self._number(value)} {remark}".strip() for value, remark in pairs]

    def _number(self, value: float) -> str:
        """A value with as many decimals as give the largest three digits, if that is not zero."""
        largest = max(map(abs, self.values)) or 1.0
        digits = 2 - math.floor(math.log10(largest))
        if not 0 <= digits <= 4 or round(value, digits) == 0:
            return short(value)
        return rounded(value, digits)

    @cached_property
    def _ticks(self) -> list[float]:
        reach = [v + s * e for v, e in self._spread for s in (-1, 1)]
        return ticks(min([0.0, *reach]), max([0.0, *reach]), 5)

    @cached_property
    def _spread(self) -> list[tuple[float, float]]:
        errors = self.errors or [0.0] * len(self.values)
        return list(zip(self.values, errors, strict=True))

    @property
    def _left(self) -> float:
        negative = [w for w, v in zip(self._written, self.values, strict=True) if v < 0]
        return widest(self._names) + 12 + (widest(negative) + 6 if negative else 0)

    @property
    def _wide(self) -> float:
        """The width of labels, bars and numbers."""
        return self._left + PLOT + widest(self._written) + 14

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, self._wide)

    @property
    def _top(self) -> float:
        return self._heading.height

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        width = max(self._wide, self._heading.width)
        return math.ceil(width), self._top + ROW * len(self.values) + (38 if self.unit else 24)

    def _x(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        return self._left + (value - low) / (high - low) * PLOT

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        bottom = self._top + ROW * len(self.values)
        for at in self._ticks:
            colour = canvas.theme.muted if at == 0 else canvas.theme.rule
            canvas.line([self._x(at)] * 2, [self._top, bottom], colour)
            canvas.text(short(at), self._x(at), bottom + 9, "center", colour=canvas.theme.muted)
        canvas.text(
            self.unit, self._left + PLOT / 2, bottom + 24, "center", colour=canvas.theme.muted
        )
        for i in range(len(self.values)):
            self._draw_bar(canvas, i)

    def _draw_bar(self, canvas: Canvas, i: int) -> None:
        value, error = self._spread[i]
        middle = self._top + ROW * (i + 0.5)
        start, end = sorted((self._x(0), self._x(value)))
        colour = MINUS if value < 0 else PLUS
        tip = f"{label_of(self.labels[i])}: {value:.4g} {self.unit}".strip()
        canvas.box(start, middle - 7, max(end - start, 0.5), 14, colour, tip=tip)
        if error:
            ends = [self._x(value - error), self._x(value + error)]
            canvas.line(ends, [middle, middle], canvas.theme.ink, thickness=1.5)
        canvas.text(self._names[i], widest(self._names) + 4, middle, "right")
        reach = self._x(value + math.copysign(error, value))
        beside = (reach - 5, "right") if value < 0 else (reach + 5, "left")
        canvas.text(self._written[i], beside[0], middle, beside[1])  # type: ignore[arg-type]

    @property
    def figure(self) -> Any:
        """The picture for plotly: `data` and `layout` of a `plotly.graph_objects.Figure`."""
        places = list(range(len(self.values)))
        trace = {
            "type": "bar",
            "orientation": "h",
            "x": list(self.values),
            "y": places,
            "text": self._written,
            "marker": {"color": [MINUS if value < 0 else PLUS for value in self.values]},
            "error_x": {"array": list(self.errors)} if self.errors else None,
        }
        rows = {"tickvals": places, "ticktext": self._names, "autorange": "reversed"}
        return {
            "data": [trace],
            "layout": {
                "title": {"text": self.title},
                "xaxis": {"title": {"text": self.unit}},
                "yaxis": rows,
            },
        }
