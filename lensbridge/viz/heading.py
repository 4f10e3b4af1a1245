"""What stands above a chart: its title, and the names of its lines in their colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.labels import FONT, LINE, widest, width

TITLE_FONT = FONT + 1
TITLE_LINE = 17.0
BOLD = 1.18  # how much wider bold letters of a title are than those of a label
SHORTEST = 280.0  # a title is not broken below this width


def wrapped(text: str, room: float) -> list[str]:
    """A text as lines that fit into a number of pixels; a word that is too long has its own line.

    Example:
        >>> wrapped("one two three", 60.0)
        ['one two', 'three']
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True)
class Heading:
    """A title, on several lines if it is long, and below it the names of the lines.

    Args:
        title: the title; empty for none.
        room: the width of the chart.
        series: the name and the colour of each line.
    """

    title: str
    room: float
    series: Sequence[tuple[str, str]] = ()

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the title."""
        return wrapped(self.title, max(SHORTEST, self.room - 8) / BOLD)

    @property
    def width(self) -> float:
        """The width of the title."""
        return widest(self.lines) * BOLD + 8 if self.lines else 0.0

    @property
    def _below_title(self) -> float:
        return 9.0 + TITLE_LINE * len(self.lines) if self.lines else 4.0

    @cached_property
    def _places(self) -> list[tuple[float, float]]:
        """Where each name starts."""
        places, x, y = [], 6.0, self._below_title + 4
        for name, _ in self.series:
            wide = 19 + width(name) + 16
            if x > 6.0 and x + wide > self.room:
                x, y = 6.0, y + LINE + 2
            places.append((x, y))
            x += wide
        return places

    @property
    def height(self) -> float:
        """How much room the heading takes."""
        return self._places[-1][1] + 14 if self.series else self._below_title

    def draw(self, canvas: Canvas) -> None:
        """Draw it at the top of a canvas."""
        for i, line in enumerate(self.lines):
            canvas.text(line, 4, 11 + TITLE_LINE * i, bold=True, size=TITLE_FONT)
        for (name, colour), (x, y) in zip(self.series, self._places, strict=True):
            canvas.line([x, x + 14], [y, y], colour, thickness=2.5)
            canvas.text(name, x + 19, y)
