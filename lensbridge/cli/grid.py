"""Grids of coloured cells in a terminal: as many columns side by side as it has room for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensbridge.viz.labels import label_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.style import Style
    from rich.table import Table

DOT = "\N{MIDDLE DOT} is a space."
"""What the tokens of a grid need said."""

_WIDEST = 14
"""Columns of the terminal that one token may take."""

_PLUS = ((207, 226, 247), (146, 190, 238), (84, 150, 222), (26, 98, 184))
_MINUS = ((252, 222, 203), (246, 181, 138), (230, 132, 72), (190, 84, 22))
"""Blue for positive, vermilion for negative values; stronger for larger ones."""

_FAINTEST = 0.1
"""Smaller values than this are not coloured."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and how strongly it is coloured.

    Args:
        text: what it says.
        weight: from -1 to 1; its sign is the colour.
    """

    text: str
    weight: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Cells in rows and columns, each with a label.

    Args:
        title: above the grid.
        corner: what the rows are.
        rows: labels of the rows.
        columns: labels of the columns.
        cells: one list for each row.
    """

    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]

    def tables(self, console: "Console") -> Iterator["Table"]:
        """Tables that together are the grid, none wider than the console."""
        from rich.cells import cell_len

        widths = [
            max(cell_len(text) for text in (self.columns[i], *(row[i].text for row in self.cells)))
            for i in range(len(self.columns))
        ]
        first = max(map(cell_len, (self.corner, *self.rows)))
        for start, stop in _spans(widths, console.width - first - 2):
            yield self._table(start, stop)

    def _table(self, start: int, stop: int) -> "Table":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        part = f" (columns {start} to {stop - 1})" if stop - start < len(self.columns) else ""
        table = Table(
            title=Text(f"{self.title}{part}"),
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column(Text(self.corner), no_wrap=True)
        for label in self.columns[start:stop]:
            table.add_column(Text(label), no_wrap=True, justify="right")
        for label, row in zip(self.rows, self.cells, strict=True):
            cells = [Text(one.text, style=_style(one.weight)) for one in row[start:stop]]
            table.add_row(Text(label), *cells)
        return table


def token(text: str) -> str:
    """A token as a label: blanks visible, shortened.

    Example:
        >>> token(" Paris"), token("incomprehensibilities")
        ('·Paris', 'incomprehensi…')
    """
    shown = label_of(text)
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 1]}…"


def percent(share: float) -> str:
    """A share in percent, without decimals; nothing for NaN.

    Example:
        >>> percent(0.126), percent(-0.001), percent(float("nan"))
        ('13', '0', '')
    """
    return "" if share != share else f"{round(100 * share):d}"


def numbered(tokens: Sequence[str]) -> list[str]:
    """Labels of positions: each token with its number."""
    return [f"{i}:{token(one)}" for i, one in enumerate(tokens)]


def _spans(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Where the columns have to be broken so that each part has room; one column at least."""
    start = used = 0
    for i, width in enumerate(widths):
        if i > start and used + width + 1 > room:
            yield start, i
            start, used = i, 0
        used += width + 1
    yield start, len(widths)


def _style(weight: float) -> "Style | str":
    from rich.color import Color
    from rich.style import Style

    size = min(abs(weight), 1.0)
    if not size >= _FAINTEST:  # not a number, too
        return ""
    shades = _PLUS if weight > 0 else _MINUS
    step = min(int(size * len(shades)), len(shades) - 1)
    ink = (0, 0, 0) if step < 2 else (255, 255, 255)
    return Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(*shades[step]))
