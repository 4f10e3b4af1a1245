"""The frame of charts with axes: ticks at round numbers, grid lines, labels, names of the axes."""

from collections.abc import Sequence
from dataclasses import dataclass

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.labels import LINE, step, widest
from lensbridge.viz.numbers import MINUS, short


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that include a range.

    Example:
        >>> ticks(0.0, 0.9)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    from matplotlib.ticker import MaxNLocator

    high = high if high > low else low + 1.0
    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(f"{at:.12g}") for at in found]


@dataclass(frozen=True)
class Frame:
    """Where the points of a chart are on its canvas.

    Args:
        size: width and height of the picture.
        top: how much room there is above the frame.
        heights: the ticks of the vertical axis.
        names: labels along the horizontal axis.
        axes: names of the horizontal and the vertical axis.
        inset: how far the first and last entry are from the frame's sides, in entries.
        places: the entry at which each label stands; None: a label for each entry.
        entries: how many entries there are, if not one for each label.
    """

    size: tuple[float, float]
    top: float
    heights: Sequence[float]
    names: Sequence[str]
    axes: tuple[str, str]
    inset: float = 0.0
    places: Sequence[float] | None = None
    entries: int | None = None

    @property
    def left(self) -> float:
        """The left edge."""
        return widest([short(at) for at in self.heights]) + 10 + (18 if self.axes[1] else 0)

    @property
    def right(self) -> float:
        """The right edge."""
        return self.size[0] - 16

    @property
    def turned(self) -> bool:
        """Whether the labels are written upwards."""
        if all(name.lstrip(MINUS).replace(".", "").isdigit() for name in self.names):
            return False
        return widest(self.names) + 6 > (self.right - self.left) / max(1, len(self.names))

    @property
    def bottom(self) -> float:
        """The lower edge."""
        labels = widest(self.names) + 8 if self.turned else LINE + 4
        return self.size[1] - labels - (LINE if self.axes[0] else 0) - 2

    def x(self, entry: float) -> float:
        """The place of an entry."""
        entries = len(self.names) if self.entries is None else self.entries
        span = max(1e-9, entries - 1 + 2 * self.inset)
        return self.left + (entry + self.inset) / span * (self.right - self.left)

    def y(self, value: float) -> float:
        """The place of a value."""
        low, high = self.heights[0], self.heights[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def draw(self, canvas: Canvas) -> None:
        """Ticks, grid lines, labels and names."""
        theme = canvas.theme
        for at in self.heights:
            strong = at == 0
            canvas.line(
                [self.left, self.right], [self.y(at)] * 2, theme.muted if strong else theme.rule
            )
            canvas.text(short(at), self.left - 6, self.y(at), "right")
        room = LINE if self.turned else widest(self.names) + 8
        for i in range(0, len(self.names), step(len(self.names), self.right - self.left, room)):
            x = self.x(i if self.places is None else self.places[i])
            if self.turned:
                canvas.text(self.names[i], x, self.bottom + 5, "right", turn=90)
            else:
                canvas.text(self.names[i], x, self.bottom + 11, "center")
        middle = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        canvas.text(self.axes[0], middle[0], self.size[1] - 8, "center", colour=theme.muted)
        canvas.text(self.axes[1], 9, middle[1], "center", turn=90, colour=theme.muted)
