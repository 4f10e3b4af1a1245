"""Edits: what one run of a sweep changes, in one place or in several."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lensbridge.points.names import layer_of
from lensbridge.sweeps.edit import Edit


@dataclass(frozen=True, eq=False, slots=True)
class Edits:
    """The edits of one run. Those of one point act in their order.

    Args:
        each: the edits; none for a run that changes nothing.

    Example:
        >>> from lensbridge.patching import Cell
        >>> window = [Cell(f"blocks.{layer}.hook_attn_out", 0, 0.0) for layer in (2, 1)]
        >>> Edits.of(window).layer
        1
    """

    each: tuple[Edit, ...]

    @classmethod
    def of(cls, given: "Edit | Edits | Iterable[Edit]") -> "Edits":
        """Edits, from one or several."""
        if isinstance(given, Edits):
            return given
        return cls(tuple(given) if isinstance(given, Iterable) else (given,))

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.each)

    @property
    def points(self) -> list[Any]:
        """The points that are edited."""
        return [edit.point for edit in self.each]

    @property
    def layer(self) -> int:
        """The first layer that is edited; 0 also where nothing in a layer is."""
        return min((layer_of(edit.point) or 0 for edit in self.each), default=0)

    @property
    def first_point(self) -> Any:
        """A point of the first layer that is edited; None where nothing is."""
        return min(self.points, key=lambda point: layer_of(point) or 0, default=None)

    def within(self, layer: int, stop: int) -> list[Edit]:
        """The edits of some layers."""
        return [edit for edit in self.each if layer <= (layer_of(edit.point) or 0) < stop]

    @property
    def mixes_late(self) -> bool:
        """Whether a later edit than the first looks at other positions than those that it writes,
        where the first one has changed them.
        """
        return len(self.each) > 1 and any(edit.mixes_positions for edit in self.each)


def points_of(cells: Sequence[Edits]) -> list[Any]:
    """All points that cells edit, each once."""
    return list(dict.fromkeys(point for cell in cells for point in cell.points))
