"""Cell: one run of a sweep, that is, one activation with another value at one place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Setter: TypeAlias = Callable[[Tensor, Any, Any], Tensor | None]
"""`f(activation, index, value)`: writes the value into the activation, or returns a new one."""


def write(activation: Tensor, index: Any, value: Any) -> Tensor:
    """The setter of a plain cell: `activation[index] = value`."""
    activation[index] = value
    return activation


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep: one activation with another value at one place.

    Args:
        point: name of the activation, in any accepted spelling.
        index: where in it, the batch axis included, as in `activation[index]`.
        value: what is written there: a number, or a tensor that fits the place.
        setter: called as `setter(activation, index, value)` where writing the value is not all;
            it edits in place or returns the new activation.
        first: the first position that it changes, where a setter of its own knows it.

    Example:
        >>> import torch
        >>> zeroed = Cell("blocks.1.attn.hook_z", (slice(None), 0, 2), 0.0)
        >>> zeroed.apply(torch.ones(1, 3, 4, 2))[0, 0].sum(-1)
        tensor([2., 2., 0., 2.])
    """

    point: Any
    index: Any
    value: Any
    setter: Setter = write
    first: int | None = None

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with the cell's value; the one that is passed may be written to."""
        given = self.setter(activation, self.index, self.value)
        return activation if given is None else given
