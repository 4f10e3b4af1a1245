"""Weights as the model uses them: plain, offloaded, adapted or quantized; and lazy stacks.

`effective` is the one place that knows how to get at a module's weight. Plain weights come as
views, so writing to them edits the model; the others come as copies, and `describe` says why.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lensbridge.errors import WeightError

State = Literal["plain", "offloaded", "adapted", "opaque", "composed"]
"""plain: the module's own tensor. offloaded: fetched for the read (a copy). adapted: a LoRA layer,
base plus delta (a copy). opaque: quantized or unknown, read by running it on the identity (a copy).
composed: a product of several (latent attention; a copy).
"""


@dataclass(frozen=True)
class Linear:
    """A projection of the model, however it is stored.

    Args:
        module: the native module.
        transposed: whether it stores `[in, out]` (Conv1D) rather than `[out, in]` (Linear).
        n_in: width of its input.
        n_out: width of its output.
    """

    module: nn.Module
    transposed: bool
    n_in: int
    n_out: int

    @property
    def state(self) -> State:
        """How the weight is held, which says whether a read is a view or a copy."""
        if "base_layer" in self.module._modules:
            return "adapted"
        weight = self.module._parameters.get("weight")
        if (
            weight is None
            or not _is_plain_float(weight)
            or weight.numel() != self.n_in * self.n_out
        ):
            return "opaque"
        return "offloaded" if weight.is_meta else "plain"

    def weight(self) -> Tensor:
        """Shapes: `[in, out]`. A view of the native parameter when `state` is "plain"."""
        if self.state in ("plain", "offloaded"):
            stored = fetch(self.module, "weight")
            return stored if self.transposed else stored.mT
        return self._by_identity()

    def bias(self) -> Tensor:
        """Shapes: `[out]`. Zeros where the module has none."""
        if self.state in ("plain", "offloaded"):
            if self.module._parameters.get("bias") is not None:
                return fetch(self.module, "bias")
            weight = self.module._parameters["weight"]
            assert weight is not None
            device = execution_device(self.module) or weight.device
            return torch.zeros(self.n_out, dtype=weight.dtype, device=device)
        return self._apply(torch.zeros(1, self.n_in))[0]

    def _by_identity(self) -> Tensor:
        out = self._apply(torch.cat([torch.eye(self.n_in), torch.zeros(1, self.n_in)]))
        return out[:-1] - out[-1]

    def _apply(self, rows: Tensor) -> Tensor:
        like = next(
            (p for p in self.module.parameters() if p.is_floating_point()),
            torch.empty(0, device=execution_device(self.module)),
        )
        device = execution_device(self.module) or like.device
        was_training = self.module.training
        self.module.eval()  # no LoRA dropout in a weight
        try:
            out: Tensor = self.module.forward(rows.to(device, like.dtype))
        finally:
            self.module.train(was_training)
        return out


def _is_plain_float(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.is_floating_point()


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate runs an offloaded module; None for a module that stays where it is."""
    hook = module.__dict__.get("_hf_hook")
    if hook is None or not any(p.is_meta for p in module.parameters(recurse=False)):
        return None
    from accelerate.hooks import AlignDevicesHook, SequentialHook

    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    for one in hooks:
        if isinstance(one, AlignDevicesHook) and one.execution_device is not None:
            return torch.device(one.execution_device)
    return None


def fetch(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer; fetched (a copy) where accelerate keeps it off the device."""
    parameter = _held(module, name)
    if parameter is None:
        raise WeightError(f"{type(module).__name__} has no {name}.")
    if not parameter.is_meta:
        return parameter
    from accelerate.utils import align_module_device

    with align_module_device(module):
        loaded = _held(module, name)
        if loaded is None or loaded.is_meta:
            raise WeightError(
                f"The {name} of {type(module).__name__} is on the meta device and nothing says "
                "where its values are. Load the model with weights, or with an offload_folder."
            )
        return loaded.detach().clone()


def _held(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters[name] if name in module._parameters else module._buffers[name]


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
