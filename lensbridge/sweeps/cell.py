"""Cell: one run of a sweep, as a user writes it: an activation with another value at one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lensbridge.sweeps.edit import IndexedEdit, Setter, SetterEdit
from lensbridge.sweeps.setters import indexed_axes


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep: one activation with another value at one place.

    Args:
        point: name of the activation, in any accepted spelling.
        index: where in it, the batch axis included, as in `activation[index]`. It is an index of
            the tensor: its positions are columns of the batch, also where texts are padded.
        value: what is written there: a number, or a tensor that fits the place.
        setter: called as `setter(activation, index, value)`; it edits in place or returns the new
            activation. None: the value is written to the index.

    Example:
        >>> import torch
        >>> zeroed = Cell("blocks.1.attn.hook_z", (slice(None), 0, 2), 0.0)
        >>> zeroed.apply(torch.ones(1, 3, 4, 2))[0, 0].sum(-1)
        tensor([2., 2., 0., 2.])
    """

    point: Any
    index: Any
    value: Any
    setter: Setter | None = None

    def edit_at(self, point: str) -> IndexedEdit | SetterEdit:
        """What the cell does, under another spelling of its point."""
        if self.setter is None:
            return IndexedEdit(point, self.index, self.value)
        return SetterEdit(point, self.index, self.value, self.setter, indexed_axes(self.setter))

    @cached_property
    def _edit(self) -> IndexedEdit | SetterEdit:
        return self.edit_at(self.point)

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with the cell's value; the one that is passed may be written to."""
        return self._edit.apply(activation)

    def first_position(self, axes: Sequence[str]) -> int:
        """The first position that the cell writes to; 0 where that is not known."""
        return self._edit.first_position(axes)

    @property
    def mixes_positions(self) -> bool:
        """Whether what it writes at a position may depend on what is at others."""
        return self._edit.mixes_positions
