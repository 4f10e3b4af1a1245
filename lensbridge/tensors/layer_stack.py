"""`LayerStack`: one weight of every layer, stacked only when all of it is needed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lensbridge.errors import WeightError

_tensor: Any = Tensor  # whose stubs do not know that properties are descriptors


_SHAPE_ONLY = frozenset(
    {
        _tensor.shape.__get__,
        _tensor.dtype.__get__,
        _tensor.device.__get__,
        _tensor.ndim.__get__,
        _tensor.requires_grad.__get__,
        _tensor.is_leaf.__get__,
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.is_floating_point,
        Tensor.__len__,
    }
)


class LayerStack(Tensor):
    """One weight of every layer, `[layer, ...]`, stacked only when all of it is needed.

    `stack[5, 3]` reads layer 5 alone (a view of the native parameter where the layout allows);
    `stack[5] = value` writes to that layer. Anything else that torch does with it works on the
    stacked copy.
    """

    _layers: Sequence[Callable[[], Tensor]]

    @staticmethod
    def of(layers: Sequence[Callable[[], Tensor]]) -> "LayerStack":
        """A stack over functions that give one layer's weight each."""
        first = layers[0]()
        stack = Tensor._make_wrapper_subclass(
            LayerStack, (len(layers), *first.shape), dtype=first.dtype, device=first.device
        )
        stack._layers = layers
        return stack

    def full(self) -> Tensor:
        """The whole stack as an ordinary tensor (a copy)."""
        parts = [layer() for layer in self._layers]
        return torch.stack([part.to(parts[0].device) for part in parts])

    def each(self, change: Callable[[Tensor], Tensor]) -> "LayerStack":
        """The stack of what a function makes of each layer, as lazy as this one."""
        return LayerStack.of([lambda one=one: change(one()) for one in self._layers])  # type: ignore[misc]

    def __getitem__(self, index: Any) -> Tensor:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if isinstance(first, int) and not isinstance(first, bool):
            one = self._layers[first]()
            return one[rest] if rest else one
        return self.full()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if not isinstance(first, int) or isinstance(first, bool):
            raise WeightError(
                "A stack of layers is written one layer at a time: stack[layer, ...] = value."
            )
        one = self._layers[first]()
        if one.data_ptr() != self._layers[first]().data_ptr():  # each read is a fresh copy
            raise WeightError(
                f"Layer {first} of this weight is a copy, so writing to it would not reach the "
                "model: it is offloaded, adapted, quantized, or a bias that does not exist."
            )
        with torch.no_grad():
            one[rest if rest else ...] = value

    def __iter__(self) -> Iterator[Tensor]:
        return (layer() for layer in self._layers)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LayerStack(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SHAPE_ONLY:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        whole = tree_map(lambda x: x.full() if isinstance(x, LayerStack) else x, (args, kwargs))
        return func(*whole[0], **(whole[1] or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        whole = tree_map(lambda x: x.full() if isinstance(x, LayerStack) else x, (args, kwargs))
        return func(*whole[0], **(whole[1] or {}))
