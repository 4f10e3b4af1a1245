"""What a rewrite replaced, so that it can be undone: the native tensors and their places."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class Undoable(Protocol):
    """A change of a model's weights; `over` once it can be undone."""

    over: bool

    def undo(self) -> None:
        """Restore every byte."""


@dataclass
class UndoLog:
    """The tensors that a rewrite changed, with their earlier values.

    The storage of a tensor is exchanged, not written to, so the original bytes are still there when
    the rewrite is undone. The version counter of the tensor is raised, so a backward pass through a
    graph that was built with the other weights is an error.
    """

    _held: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _places: list[tuple[nn.Module, str, nn.Parameter | None]] = field(default_factory=list)

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Give a parameter or buffer new values, in its own dtype and on its own device."""
        self._held.setdefault(id(tensor), (tensor, tensor.data))
        _exchange(tensor, torch.empty_like(tensor.data).copy_(value))

    def copy(self, tensor: Tensor) -> None:
        """Give a parameter a copy of its values to write to, if it has none from this log yet."""
        if id(tensor) not in self._held:
            self.write(tensor, tensor.data)

    def put(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        """Set a new parameter of a module: a bias, or its own copy of a shared weight."""
        self._places.append((module, name, module._parameters[name]))
        module._parameters[name] = parameter

    def undo(self) -> None:
        """Restore everything: the same parameters with the same bytes in the same places.

        A tensor that was moved to another device or dtype in between stays there.
        """
        while self._places:
            module, name, before = self._places.pop()
            module._parameters[name] = before
        while self._held:
            tensor, data = self._held.popitem()[1]
            _exchange(tensor, data.to(tensor.device, tensor.dtype))

    def forget(self) -> None:
        """Drop the earlier values."""
        self._places.clear()
        self._held.clear()


def _exchange(tensor: Tensor, data: Tensor) -> None:
    tensor.data = data
    torch.autograd.graph.increment_version(tensor)
