"""The colours of a scale, with its ends, its middle and its unit."""

from dataclasses import dataclass

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.labels import LINE, width
from lensbridge.viz.numbers import short
from lensbridge.viz.scale import Scale

LONGEST, SHORTEST = 168.0, 100.0  # of the strip of colours
STRIP = 9.0
SHADES = 168


@dataclass(frozen=True)
class Legend:
    """A strip of colours below a picture.

    Args:
        scale: the scale.
        room: the width of what is above it. The unit stands beside the strip if there is room,
            otherwise over it.
    """

    scale: Scale
    room: float

    @property
    def strip(self) -> float:
        """The width of the strip of colours."""
        return min(LONGEST, max(SHORTEST, self.room))

    @property
    def _beside(self) -> bool:
        return self.strip + 14 + width(self.scale.unit) <= self.room

    @property
    def _over(self) -> float:
        return LINE + 2 if self.scale.unit and not self._beside else 0.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        beside = self.strip + 14 if self._beside and self.scale.unit else 0.0
        return max(self.strip, beside + width(self.scale.unit)), self._over + 26

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Draw it with its upper left corner at a place."""
        scale, muted = self.scale, canvas.theme.muted
        if self._over:
            canvas.text(scale.unit, x, y + LINE / 2 - 1, colour=muted)
        elif scale.unit:
            canvas.text(scale.unit, x + self.strip + 14, y + STRIP / 2, colour=muted)
        y += self._over
        reach = scale.limit - scale.low
        steps = [scale.low + (i + 0.5) / SHADES * reach for i in range(SHADES)]
        canvas.pixels(x, y, self.strip, STRIP, [[scale.rgba(value) for value in steps]])
        canvas.box(x, y, self.strip, STRIP, "", outline=canvas.theme.rule, thickness=0.8)
        middle = 0.0 if scale.diverging else scale.limit / 2
        canvas.text(short(scale.low), x, y + STRIP + 10, size=10)
        canvas.text(short(middle), x + self.strip / 2, y + STRIP + 10, "center", size=10)
        canvas.text(short(scale.limit), x + self.strip, y + STRIP + 10, "right", size=10)
