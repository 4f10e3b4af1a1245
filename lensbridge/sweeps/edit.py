"""Edit: what one run of a sweep changes in one activation, and from which position on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

Setter: TypeAlias = Callable[[Tensor, Any, Any], Tensor | None]
"""`f(activation, index, value)`: writes the value into the activation, or returns a new one."""


class Edit(Protocol):
    """A change of one activation.

    `IndexedEdit` writes a value, `SetterEdit` leaves that to a function, and an `InterventionEdit`
    (`lensbridge.interventions`) does what an intervention does.
    """

    @property
    def point(self) -> Any:
        """Name of the activation."""

    def apply(self, activation: Tensor) -> Tensor:
        """The changed activation; the one that is passed may be written to."""

    def first_position(self, axes: Sequence[str]) -> int:
        """The first position that changes; 0 where that is not known.

        Args:
            axes: letters of the activation's axes.
        """

    @property
    def mixes_positions(self) -> bool:
        """Whether what it writes at a position may depend on what is at others."""


@dataclass(frozen=True, eq=False)
class IndexedEdit:
    """A value written to an index: `activation[index] = value`.

    Args:
        point: name of the activation.
        index: where in it, the batch axis included.
        value: a number, or a tensor that fits the place.

    Example:
        >>> IndexedEdit("z", (slice(None), 5, 2), 0.0).first_position(["b", "p", "h", "d"])
        5
    """

    point: Any
    index: Any
    value: Any

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with the value written to it."""
        activation[self.index] = self.value
        return activation

    def first_position(self, axes: Sequence[str]) -> int:
        """The first position that the index names."""
        axis, index = _position_axis(axes), self.index
        index = index if isinstance(index, tuple) else (index,)
        if axis is None or axis >= len(index) or not _is_plain(index):
            return 0
        return _first(index[axis])

    @property
    def mixes_positions(self) -> bool:
        """Never: the value is given."""
        return False


@dataclass(frozen=True, eq=False)
class SetterEdit:
    """A change that a function makes.

    Args:
        point: name of the activation.
        index: where in it, in a form that the function knows.
        value: what it is to write.
        setter: called as `setter(activation, index, value)`; it edits in place or returns the new
            activation.
        axes: the axes of the activation that `index[1]`, `index[2]`... point into; none for a
            function whose index means something else.
    """

    point: Any
    index: Any
    value: Any
    setter: Setter
    axes: tuple[int, ...] = ()

    def apply(self, activation: Tensor) -> Tensor:
        """The activation as the function leaves it."""
        changed = self.setter(activation, self.index, self.value)
        return activation if changed is None else changed

    def first_position(self, axes: Sequence[str]) -> int:
        """The position in the index, if the function is known to take one."""
        axis = _position_axis(axes)
        return _first(self.index[1 + self.axes.index(axis)]) if axis in self.axes else 0

    @property
    def mixes_positions(self) -> bool:
        """Whether the function is one that nothing is known of."""
        return not self.axes


def _position_axis(axes: Sequence[str]) -> int | None:
    return next((i for i, letter in enumerate(axes) if letter in "pq"), None)


def _is_plain(index: tuple[Any, ...]) -> bool:
    """Whether each entry of an index is about the axis at its own place."""
    return all(isinstance(entry, int | slice | list) for entry in index)


def _first(entry: Any) -> int:
    """The first of the positions that an entry of an index names; 0 where that is not known."""
    if isinstance(entry, slice):
        entry = entry.start if entry.step is None or entry.step > 0 else 0
    first = min(entry) if isinstance(entry, list) and entry else entry
    return first if isinstance(first, int) and first > 0 else 0
