"""A grid of numbers as inline SVG.

The colour of a cell shows the sign and its opacity the size. Zero has the colour of the page, so
one picture suits light and dark screens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lensbridge.viz.markup import Anchor, Html, element, label, picture, plain
from lensbridge.viz.numbers import rounded, short

Row: TypeAlias = Sequence[float | None]
"""The values of one row; None leaves a cell empty."""

LETTER = 6.7  # advance of one letter of a label, in pixels
TILT = math.radians(40)
LEGEND_STEPS = 24
STEP = 7.0  # width of one of them, in pixels
STRONG = 0.6  # opacity from which a number is written in the inverse colour


@dataclass(frozen=True)
class Scale:
    """The colour scale of a heatmap.

    Args:
        limit: the value drawn at full strength; larger values look the same and are marked.
        diverging: whether it runs from `-limit` to `limit` rather than from 0 to `limit`.
        unit: what is measured, for the legend.
    """

    limit: float
    diverging: bool = True
    unit: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"A scale needs a limit above 0, not {self.limit}.")

    @classmethod
    def around_zero(cls, *grids: Sequence[Row], unit: str = "", least: float = 1e-9) -> "Scale":
        """The smallest diverging scale, symmetric around zero, that includes every value."""
        sizes = [abs(value) for grid in grids for row in grid for value in row if value is not None]
        return cls(max([least, *sizes]), unit=unit)

    def strength(self, value: float) -> float:
        """The opacity of a value, 0 to 1."""
        return min(1.0, abs(value) / self.limit)

    @property
    def low(self) -> float:
        """The value at the left end of the legend."""
        return -self.limit if self.diverging else 0.0

    def steps(self) -> list[float]:
        """The legend's values from left to right."""
        width = (self.limit - self.low) / LEGEND_STEPS
        return [self.low + (i + 0.5) * width for i in range(LEGEND_STEPS)]


@dataclass(frozen=True)
class Heatmap:
    """A labelled grid of numbers.

    Args:
        title: what it shows, also for screen readers.
        values: rows from top to bottom; None leaves a cell out.
        rows: a label for each row.
        columns: a label for each column.
        scale: the colour scale.
        axes: names of rows and columns, as ("layer", "head"); "" where the labels are enough.
        cell: width and height of a cell in pixels.
        digits: decimals written into the cells; None writes no numbers.
        every: label every n-th row and column.
        marked: cells to frame, as (row, column).

    Raises:
        ValueError: labels that do not match the grid, or a value that is not a finite number.
    """

    title: str
    values: Sequence[Row]
    rows: Sequence[str]
    columns: Sequence[str]
    scale: Scale
    axes: tuple[str, str] = ("row", "column")
    cell: tuple[float, float] = (46, 30)
    digits: int | None = 2
    every: int = 1
    marked: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        shape, widths = len(self.values), {len(row) for row in self.values}
        if shape != len(self.rows) or widths != {len(self.columns)}:
            raise ValueError(
                f"{len(self.rows)} row and {len(self.columns)} column labels do not fit a grid of "
                f"{shape} rows with {sorted(widths)} columns."
            )
        wrong = [v for row in self.values for v in row if v is not None and not math.isfinite(v)]
        if wrong:
            raise ValueError(f"{len(wrong)} values of {self.title!r} are not finite: {wrong[:3]}.")

    def svg(self) -> Html:
        """The picture."""
        width, height = self.size
        return picture(
            self.title,
            "heatmap",
            width,
            height,
            *self._row_labels(),
            *self._column_labels(),
            *self._cells(),
            *self._frames(),
            *_legend(self.scale, self.left, height - 28),
        )

    @property
    def left(self) -> float:
        """The left edge of the cells, with room for the row labels and tilted column labels."""
        rows = max(map(len, self.rows)) * LETTER + 22
        lean = [
            len(text) * LETTER * math.cos(TILT) - self.cell[0] * (i + 0.5) + 4
            for i, text in enumerate(self.columns)
            if self._tilted and i % self.every == 0
        ]
        return math.ceil(max([rows, *lean]))

    @property
    def bottom(self) -> float:
        """The lower edge of the column labels."""
        longest = max(map(len, self.columns)) * LETTER
        labels = longest * math.sin(TILT) + 14 if self._tilted else 18
        return math.ceil(self.cell[1] * len(self.rows) + 4 + labels)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels; the legend needs a minimal width."""
        legend = LEGEND_STEPS * STEP + 12 + len(self.scale.unit) * LETTER
        width = self.left + max(self.cell[0] * len(self.columns), legend) + 8
        return math.ceil(width), self.bottom + 52

    @property
    def _tilted(self) -> bool:
        return max(map(len, self.columns)) * LETTER > self.cell[0] * self.every - 2

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        return self.left + column * self.cell[0], 4 + row * self.cell[1]

    def _row_labels(self) -> Iterator[Html]:
        middle = 4 + self.cell[1] * len(self.rows) / 2
        yield label(self.axes[0], 10, middle, "middle", kind="axis", turn=-90)
        for i in range(0, len(self.rows), self.every):
            x, y = self._corner(i, 0)
            yield label(self.rows[i], x - 6, y + self.cell[1] / 2 + 4, "end")

    def _column_labels(self) -> Iterator[Html]:
        turn = -math.degrees(TILT) if self._tilted else 0
        for i in range(0, len(self.columns), self.every):
            x, y = self._corner(len(self.rows), i)
            middle = x + self.cell[0] / 2 + (4 if turn else 0)
            anchor: Anchor = "end" if turn else "middle"
            yield label(self.columns[i], middle, y + 14, anchor, turn=turn)
        middle = self.left + self.cell[0] * len(self.columns) / 2
        yield label(self.axes[1], middle, self.bottom + 12, "middle", kind="axis")

    def _cells(self) -> Iterator[Html]:
        for i, row in enumerate(self.values):
            for j, value in enumerate(row):
                if value is not None:
                    yield self._cell(i, j, value)

    def _cell(self, i: int, j: int, value: float) -> Html:
        (x, y), (width, height) = self._corner(i, j), self.cell
        place = f"{self.axes[0]} {self.rows[i]}, {self.axes[1]} {self.columns[j]}"
        parts = [
            element("title", plain(f"{place}: {value:.4g} {self.scale.unit}".strip())),
            _patch(self.scale, value, x, y, width, height),
        ]
        if self.digits is not None:
            ink = "number strong" if self.scale.strength(value) > STRONG else "number"
            number = rounded(value, self.digits)
            parts.append(label(number, x + width / 2, y + height / 2 + 4, "middle", kind=ink))
        return element("g", *parts, class_="cell")

    def _frames(self) -> Iterator[Html]:
        for i, j in self.marked:
            x, y = self._corner(i, j)
            size = {"width": self.cell[0] - 2, "height": self.cell[1] - 2}
            yield element("rect", class_="frame", x=x + 1, y=y + 1, rx=3, **size)


def _patch(
    scale: Scale, value: float, x: float, y: float, width: float, height: float, gap: float = 1
) -> Html:
    size = {"width": width - gap, "height": height - gap}
    sign = "minus" if value < 0 else "plus"
    opacity = round(scale.strength(value), 3)
    return element("rect", class_=sign, x=x, y=y, fill_opacity=opacity, **size)


def _legend(scale: Scale, x: float, y: float) -> Iterator[Html]:
    for i, value in enumerate(scale.steps()):
        yield _patch(scale, value, x + i * STEP, y, STEP, 10, gap=0)
    span = LEGEND_STEPS * STEP
    yield element("rect", class_="outline", x=x, y=y, width=span, height=10)
    middle = 0.0 if scale.diverging else scale.limit / 2
    for part, value in zip((0, 0.5, 1), (scale.low, middle, scale.limit), strict=True):
        yield label(short(value), x + part * span, y + 22, "middle")
    yield label(scale.unit, x + span + 12, y + 9, kind="axis")
