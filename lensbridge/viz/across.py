"""The columns of a grid: how wide they are, and how their labels are written."""

from collections.abc import Sequence
from dataclasses import dataclass

from lensbridge.viz.labels import LINE, shortened, step, widest, width

WIDE = 72.0  # of a column, for its label
TURNED = 66.0  # of a label that is written upwards
READABLE = 30.0  # of a column whose label is written across it


@dataclass(frozen=True)
class Across:
    """The columns of a grid.

    Args:
        cell: the width of a column in pixels.
        names: the labels, as they are written.
        turned: whether they are written upwards.
        step: every how many columns there is a label.
    """

    cell: float
    names: Sequence[str]
    turned: bool
    step: int

    @classmethod
    def of(cls, names: Sequence[str], least: float, room: float) -> "Across":
        """Columns that are at least so wide, if the room for all of them allows it.

        Labels are written from left to right, up to one in five of them shortened; otherwise
        upwards.

        Example:
            >>> Across.of(["The", "·cat", "·sat"], 38.0, 700.0).turned
            False
            >>> Across.of(["·something"] * 40, 16.0, 700.0).turned
            True
        """
        most = max(2.0, room / len(names))
        least = min(least, most)
        if all(name.isdigit() for name in names):
            return cls(least, names, False, step(len(names), least * len(names), widest(names) + 6))
        wide = min(max(least, min(widest(names) + 8, WIDE)), most)
        cut = sum(width(name) > wide - 4 for name in names)
        if wide >= READABLE and 5 * cut <= len(names):
            return cls(wide, [shortened(name, wide - 4) for name in names], False, 1)
        turned = [shortened(name, TURNED) for name in names]
        return cls(least, turned, True, step(len(names), least * len(names), LINE))

    @property
    def height(self) -> float:
        """How much room the labels take below the grid."""
        return widest(self.names[:: self.step]) + 8 if self.turned else LINE + 4
