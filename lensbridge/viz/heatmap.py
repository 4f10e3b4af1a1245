"""A grid of numbers: the colour of a cell shows the sign, its strength the size."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from lensbridge.viz.across import Across
from lensbridge.viz.canvas import Canvas
from lensbridge.viz.heading import Heading
from lensbridge.viz.labels import LINE, label_of, shortened, step, widest, width
from lensbridge.viz.legend import Legend
from lensbridge.viz.numbers import rounded
from lensbridge.viz.picture import Picture
from lensbridge.viz.scale import STRONG, Row, Scale
from lensbridge.viz.theme import MINUS, PLUS

Digits: TypeAlias = int | Literal["auto"] | None
"""Decimals written into cells: a number of them, "auto" for as many as help, None for none."""

MOST_DRAWN = 2_500  # cells that are marks of their own, with a tip; more become an image
MOST_NUMBERS = 400
FEW = 8  # columns that are made a little wider
LONGEST = 170.0  # of a label
GAP = 1.0
MOST_TEXT = 76.0  # of a text in a cell


@dataclass(frozen=True, repr=False)
class Heatmap(Picture):
    """A labelled grid of numbers.

    Args:
        title: what it shows, written above it.
        values: rows from top to bottom; None leaves a cell out.
        rows: a label for each row.
        columns: a label for each column: tokens, names of heads.
        scale: the colour scale; None: from the values, with a round end.
        axes: names of rows and columns, as ("layer", "head"); "" where the labels are enough.
        digits: decimals written into the cells; "auto" writes as many as are worth reading, if the
            cells are large enough; None writes no numbers. A number that is rounded to zero is
            left out.
        marked: cells to frame, as (row, column).
        texts: what to write into the cells in place of numbers.
        tips: what to show when the pointer is over a cell, in place of its place and value.
        most: the largest width and height of all cells together, in pixels.

    Raises:
        ValueError: labels that do not match the grid, or a value that is not a finite number.
    """

    title: str
    values: Sequence[Row]
    rows: Sequence[str]
    columns: Sequence[str]
    scale: Scale = field(default=None)  # type: ignore[assignment]  # set in __post_init__
    axes: tuple[str, str] = ("row", "column")
    digits: Digits = "auto"
    marked: Sequence[tuple[int, int]] = ()
    texts: Sequence[Sequence[str]] | None = None
    tips: Sequence[Sequence[str]] | None = None
    most: tuple[float, float] = (700.0, 620.0)

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
        if self.scale is None:
            object.__setattr__(self, "scale", Scale.fitting(self.values))

    # --- measures ----------------------------------------------------------------------------

    @cached_property
    def _row_names(self) -> list[str]:
        return [shortened(label_of(entry), LONGEST) for entry in self.rows]

    @cached_property
    def _across(self) -> Across:
        contents = widest([text for row in self.texts or () for text in row]) + 8
        few = 46.0 if len(self.columns) <= FEW else 38.0
        least = 44.0 if self.texts else few if self._wants_numbers else 16.0
        least = max(least, min(contents, MOST_TEXT)) if self.texts else least
        room = max(self.most[0], least * len(self.columns)) if self.texts else self.most[0]
        return Across.of([label_of(entry) for entry in self.columns], least, room)

    @cached_property
    def cell(self) -> tuple[float, float]:
        """Width and height of a cell in pixels."""
        return self._across.cell, min(26.0, max(2.0, self.most[1] / len(self.rows)))

    @property
    def _wants_numbers(self) -> bool:
        return self.digits is not None and len(self.rows) * len(self.columns) <= MOST_NUMBERS

    @cached_property
    def _numbers(self) -> int | None:
        """Decimals to write; None: no numbers."""
        fits = self.cell[0] >= 28 and self.cell[1] >= 14
        if self.digits == "auto":
            return self.scale.digits if fits and self._wants_numbers else None
        return self.digits

    @cached_property
    def _grid(self) -> tuple[float, float]:
        """Width and height of all cells together."""
        return self.cell[0] * len(self.columns), self.cell[1] * len(self.rows)

    @property
    def _left(self) -> float:
        return widest(self._row_names) + 8 + (18 if self.axes[0] else 0)

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, self._left + self._grid[0] + 8)

    @property
    def _top(self) -> float:
        return self._heading.height

    @property
    def _below(self) -> float:
        """The height of the column labels and the name of their axis."""
        return self._across.height + (LINE if self.axes[1] else 0)

    @cached_property
    def _legend(self) -> Legend:
        return Legend(self.scale, self._grid[0])

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        inner = max(self._grid[0], self._legend.size[0], width(self.axes[1]))
        height = self._top + self._grid[1] + self._below + 8 + self._legend.size[1]
        return math.ceil(max(self._left + inner + 8, self._heading.width)), math.ceil(height)

    # --- drawing -----------------------------------------------------------------------------

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        self._draw_names(canvas)
        across, down = self.cell
        canvas.box(self._left - 1, self._top - 1, *self._grid, "", outline=canvas.theme.rule)
        cells = len(self.rows) * len(self.columns)
        (self._draw_cells if cells <= MOST_DRAWN else self._draw_image)(canvas)
        for i, j in self.marked:
            x, y = self._corner(i, j)
            canvas.box(x, y, across - GAP, down - GAP, "", outline=canvas.theme.ink)
        self._legend.draw(canvas, self._left, self._top + self._grid[1] + self._below + 8)

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        return self._left + column * self.cell[0], self._top + row * self.cell[1]

    def _draw_names(self, canvas: Canvas) -> None:
        across, down = self.cell
        rows = len(self.rows)
        for i in range(0, rows, step(rows, down * rows, 12.0)):
            y = self._corner(i, 0)[1] + down / 2
            canvas.text(self._row_names[i], self._left - 6, y, "right")
        bottom = self._top + down * rows
        for j in range(0, len(self.columns), self._across.step):
            x = self._corner(0, j)[0] + across / 2
            if self._across.turned:
                canvas.text(self._across.names[j], x, bottom + 5, "right", turn=90)
            else:
                canvas.text(self._across.names[j], x, bottom + 10, "center")
        muted = canvas.theme.muted
        if self.axes[0]:
            canvas.text(
                self.axes[0], 9, self._top + down * rows / 2, "center", turn=90, colour=muted
            )
        if self.axes[1]:
            middle = self._left + max(self._grid[0], width(self.axes[1])) / 2
            canvas.text(self.axes[1], middle, bottom + self._below - 6, "center", colour=muted)

    def _draw_cells(self, canvas: Canvas) -> None:
        across, down = self.cell
        for i, j, value in self._entries():
            x, y = self._corner(i, j)
            strength = self.scale.strength(value)
            size = across - GAP * (across > 4), down - GAP * (down > 4)
            colour = self.scale.colour(value)
            canvas.box(x, y, *size, colour, strength=strength, tip=self._tip(i, j, value))
            written = self._written(i, j, value)
            if written:
                ink = "#ffffff" if strength >= STRONG else canvas.theme.cell_ink
                canvas.text(written, x + across / 2, y + down / 2, "center", colour=ink, size=10)

    def _entries(self) -> Iterator[tuple[int, int, float]]:
        for i, row in enumerate(self.values):
            for j, value in enumerate(row):
                if value is not None:
                    yield i, j, value

    def _written(self, i: int, j: int, value: float) -> str:
        if self.texts is not None:
            return shortened(label_of(self.texts[i][j]), self.cell[0] - 4)
        if self._numbers is None or round(value, self._numbers) == 0:
            return ""
        return rounded(value, self._numbers)

    def _tip(self, i: int, j: int, value: float) -> str:
        if self.tips is not None:
            return self.tips[i][j]
        places = [
            f"{axis} {label_of(entry)}".strip()
            for axis, entry in zip(self.axes, (self.rows[i], self.columns[j]), strict=True)
        ]
        return f"{', '.join(places)}: {value:.4g} {self.scale.unit}".strip()

    def _draw_image(self, canvas: Canvas) -> None:
        image = [[self.scale.rgba(value) for value in row] for row in self.values]
        canvas.pixels(self._left, self._top, *self._grid, image)

    @property
    def figure(self) -> Any:
        """The picture for plotly: `data` and `layout` of a `plotly.graph_objects.Figure`."""
        shades = [(0, MINUS), (0.5, "#ffffff"), (1, PLUS)]
        shades = shades if self.scale.diverging else [(0, "#ffffff"), (1, PLUS)]
        trace = {
            "type": "heatmap",
            "z": [list(row) for row in self.values],
            "x": list(range(len(self.columns))),
            "y": list(range(len(self.rows))),
            "zmin": self.scale.low,
            "zmax": self.scale.limit,
            "colorscale": shades,
            "colorbar": {"title": {"text": self.scale.unit}},
            "customdata": [
                [[label_of(row), label_of(column)] for column in self.columns] for row in self.rows
            ],
            "hovertemplate": (
                f"{self.axes[0]} %{{customdata[0]}}, {self.axes[1]} %{{customdata[1]}}: "
                "%{z:.4g}<extra></extra>"
            ),
        }
        return {
            "data": [trace],
            "layout": {
                "title": {"text": self.title},
                "xaxis": _plotly_axis(self.axes[1], self._across.names),
                "yaxis": {**_plotly_axis(self.axes[0], self._row_names), "autorange": "reversed"},
            },
        }


def _plotly_axis(name: str, labels: Sequence[str]) -> dict[str, Any]:
    numbered = list(range(len(labels)))
    return {"title": {"text": name}, "tickvals": numbered, "ticktext": list(labels)}
