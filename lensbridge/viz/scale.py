"""Colour scales: which strength a value is drawn with, and where the scale ends."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lensbridge.viz.theme import MINUS, PLUS

Row: TypeAlias = Sequence[float | None]
"""The values of one row; None leaves a cell empty."""

_ROUND = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
STRONG = 0.88  # from here white numbers are easier to read on a light page than black ones


def round_up(value: float) -> float:
    """The next round number, for the end of a scale.

    Example:
        >>> round_up(0.083), round_up(3.1), round_up(97), round_up(1.0)
        (0.1, 4.0, 100.0, 1.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    factor = next((f for f in _ROUND if value <= f * power * (1 + 1e-9)), 10.0)
    return float(f"{factor * power:.3g}")


@dataclass(frozen=True)
class Scale:
    """The colour scale of a heatmap.

    Args:
        limit: the value drawn at full strength; larger values look the same.
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
        """A diverging scale with a round end that includes every value."""
        return cls(round_up(max([least, *map(abs, _all(grids))])), unit=unit)

    @classmethod
    def fitting(cls, *grids: Sequence[Row], unit: str = "") -> "Scale":
        """A scale with a round end: diverging if there are negative values, else from 0."""
        values = list(_all(grids))
        diverging = min(values, default=0.0) < 0
        return cls(round_up(max([1e-9, *map(abs, values)])), diverging, unit)

    def strength(self, value: float) -> float:
        """The opacity of a value, 0 to 1."""
        return min(1.0, abs(value) / self.limit)

    def colour(self, value: float) -> str:
        """The colour of a value, to be drawn with the opacity `strength`."""
        return MINUS if value < 0 else PLUS

    def rgba(self, value: float | None) -> tuple[float, float, float, float]:
        """Colour and opacity as parts of 1; no opacity for None."""
        if value is None:
            return (0.0, 0.0, 0.0, 0.0)
        red, green, blue = (int(self.colour(value)[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return (red, green, blue, self.strength(value))

    @property
    def low(self) -> float:
        """The value at the left end."""
        return -self.limit if self.diverging else 0.0

    @property
    def digits(self) -> int:
        """Decimals that are worth printing."""
        return 0 if self.limit >= 20 else 1 if self.limit >= 2 else 2 if self.limit >= 0.1 else 3


def _all(grids: Iterable[Sequence[Row]]) -> Iterable[float]:
    return (value for grid in grids for row in grid for value in row if value is not None)
