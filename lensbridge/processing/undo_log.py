"""What a rewrite replaced, so that it can be taken back: the native tensors and their places."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class UndoLog:
    """The tensors that a rewrite touched, with what they held before.

    A tensor's storage is exchanged and never written to, so the original bytes are still there when
    the rewrite is undone, whatever happened in between. Its version counter moves, so that a
    backward pass through a graph that was built with other weights is an error.
    """

    _held: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _places: list[tuple[nn.Module, str, nn.Parameter | None]] = field(default_factory=list)

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Give a parameter or buffer other numbers, in its own dtype, on its own device."""
        self._held.setdefault(id(tensor), (tensor, tensor.data))
        _exchange(tensor, torch.empty_like(tensor.data).copy_(value))

    def put(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        """Put a parameter of its own into a place: a new bias, or a weight that was shared."""
        self._places.append((module, name, module._parameters[name]))
        module._parameters[name] = parameter

    def undo(self) -> None:
        """Put everything back: the same parameters with the same bytes in the same places.

        What was moved to another device or dtype in between stays there.
        """
        while self._places:
            module, name, before = self._places.pop()
            module._parameters[name] = before
        while self._held:
            tensor, data = self._held.popitem()[1]
            _exchange(tensor, data.to(tensor.device, tensor.dtype))

    def forget(self) -> None:
        """Let go of what was there before."""
        self._places.clear()
        self._held.clear()


def _exchange(tensor: Tensor, data: Tensor) -> None:
    tensor.data = data
    torch.autograd.graph.increment_version(tensor)
