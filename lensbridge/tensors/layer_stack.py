"""`LayerStack`: one weight of every layer, stacked only when the whole stack is needed."""

from collections.abc import Callable, Iterator, Sequence
from operator import index as as_int
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lensbridge.errors import WeightError
from lensbridge.tensors.weight_copy import WeightCopy, guarded, live_or_copy, version, written_to

_tensor: Any = Tensor  # whose stubs do not know that properties are descriptors


_SHAPE_ONLY = frozenset(
    {
        _tensor.shape.__get__,
        _tensor.dtype.__get__,
        _tensor.device.__get__,
        _tensor.ndim.__get__,
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.is_floating_point,
        Tensor.__len__,
    }
)

_OF_PARAMETERS = frozenset(
    {
        _tensor.grad.__get__,
        Tensor.requires_grad_,
        Tensor.detach_,
        Tensor.share_memory_,
        Tensor.resize_,
        Tensor.resize_as_,
        Tensor.set_,
        Tensor.retain_grad,
        Tensor.register_hook,
        Tensor.register_post_accumulate_grad_hook,
    }
)


def _one_of(layers: Sequence[Callable[[], Tensor]]) -> Tensor:
    """The weight of the first layer that has its weights in this process."""
    for layer in layers[:-1]:
        try:
            return layer()
        except WeightError:
            continue
    return layers[-1]()


def _require_one_shape(parts: list[Tensor]) -> None:
    shapes: dict[tuple[int, ...], list[int]] = {}
    for layer, part in enumerate(parts):
        shapes.setdefault(tuple(part.shape), []).append(layer)
    if len(shapes) > 1:
        told = "; ".join(f"{shape} in layers {at}" for shape, at in shapes.items())
        raise WeightError(
            f"Layers differ, so this weight cannot be stacked: {told}. Take it of one layer: "
            "stack[0]."
        )


class LayerStack(Tensor):
    """One weight of every layer, `[layer, ...]`, stacked only when the whole stack is needed.

    `stack[5, 3]` reads only layer 5 (a view of the native parameter where the layout allows);
    `stack[5] = value` writes to that layer. Operations that change the whole stack in place
    (`mul_`, `copy_`, `nn.init.zeros_`, `out=stack`) write the new values to every layer, or raise
    where a layer is a copy. All other operations of torch work on a stacked copy. A view of that
    copy (`stack[:, 2]`) is a `WeightCopy`, which raises when it is written to.
    """

    _layers: Sequence[Callable[[], Tensor]]

    @staticmethod
    def of(layers: Sequence[Callable[[], Tensor]]) -> "LayerStack":
        """A stack over functions, each of which returns the weight of one layer."""
        first = _one_of(layers)
        stack = Tensor._make_wrapper_subclass(
            LayerStack, (len(layers), *first.shape), dtype=first.dtype, device=first.device
        )
        stack._layers = layers
        return stack

    def full(self) -> Tensor:
        """The whole stack as an ordinary tensor (a copy).

        Raises:
            WeightError: the layers have weights of different shapes.
        """
        parts = [layer() for layer in self._layers]
        _require_one_shape(parts)
        return torch.stack([part.to(parts[0].device) for part in parts])

    def each(self, change: Callable[[Tensor], Tensor]) -> "LayerStack":
        """The stack of a function's results for each layer, as lazy as this one."""
        return LayerStack.of([lambda one=one: change(one()) for one in self._layers])  # type: ignore[misc]

    def __getitem__(self, index: Any) -> Tensor:
        layer, rest = _taken_apart(index)
        if layer is None:
            whole = self._copied()
            with torch._C.DisableTorchFunctionSubclass():
                return guarded(whole[index], [whole])
        self._refuse_missing(layer)
        one = live_or_copy(self._layers[layer]())
        return one[rest] if rest else one

    def __setitem__(self, index: Any, value: Any) -> None:
        layer, rest = _taken_apart(index)
        if layer is None:
            raise WeightError(
                "A stack is written one layer at a time: stack[layer, ...] = value. For all of "
                "them: for layer in range(len(stack)): stack[layer, ...] = value."
            )
        self._refuse_missing(layer)
        one = self._live(layer)
        with torch.no_grad():
            one[rest if rest else ...] = value

    def __iter__(self) -> Iterator[Tensor]:
        return (live_or_copy(layer()) for layer in self._layers)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LayerStack(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.full().detach()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.full().__reduce_ex__(protocol)

    def _copied(self) -> Tensor:
        """The whole stack, counting writes to it in inference mode too."""
        with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
            return self.full()

    def _refuse_missing(self, layer: int) -> None:
        """Refuse a layer that there is not.

        Raises:
            IndexError: with the layers that there are; iteration relies on this type.
        """
        count = len(self._layers)
        if not -count <= layer < count:
            raise IndexError(
                f"There is no layer {layer}: this weight has {count} layers, 0 to {count - 1} (or "
                f"-{count} to -1)."
            )

    def _live(self, layer: int) -> Tensor:
        """One layer, for writing.

        Raises:
            WeightError: each read of it is a fresh copy.
        """
        one = self._layers[layer]()
        if type(one) is WeightCopy or one.data_ptr() != self._layers[layer]().data_ptr():
            why = (type(one) is WeightCopy and one.why) or _COMPUTED
            raise WeightError(
                f"Layer {layer} of this weight is a copy, so writing to it would not reach the "
                f"model. {why} To change only a copy, take stack.full()."
            )
        return one

    def _write(self, values: Tensor) -> None:
        """Write the whole stack's values to the layers.

        Raises:
            WeightError: a layer is a copy, or two layers are one parameter and get two values.
        """
        layers = [self._live(layer) for layer in range(len(self._layers))]
        first_at: dict[tuple[int, tuple[int, ...]], int] = {}
        for layer, held in enumerate(layers):
            other = first_at.setdefault((held.data_ptr(), held.stride()), layer)
            if other != layer and not _equal(values[layer], values[other]):
                raise WeightError(
                    f"Layers {other} and {layer} of this stack are one parameter of the model, "
                    "which cannot hold two values. Write the same values to both."
                )
        with torch.no_grad():
            for held, value in zip(layers, values, strict=True):
                held.copy_(value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SHAPE_ONLY:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is _tensor.requires_grad.__get__:
            return any(layer().requires_grad for layer in args[0]._layers)
        if func is _tensor.is_leaf.__get__:
            return not args[0].requires_grad
        asked = func in _OF_PARAMETERS or getattr(func, "__name__", "") in ("__set__", "__delete__")
        if asked and args and isinstance(args[0], LayerStack):
            raise _of_parameters(func)
        meant = [one for one in written_to(func, args, kwargs) if isinstance(one, LayerStack)]
        return _on_copies(func, args, kwargs, meant, counted=True)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        named = zip(func._schema.arguments, args, strict=False)
        pairs = [*named, *((one, kwargs.get(one.name)) for one in func._schema.arguments)]
        written = [x for one, x in pairs if one.alias_info is not None and one.alias_info.is_write]
        meant = [one for one in tree_leaves(written) if isinstance(one, LayerStack)]
        return _on_copies(func, args, kwargs, meant, counted=False)


_COMPUTED = (
    "It is computed from other weights (as expanded K and V are), or a bias that does not exist. "
    "Change the parameters from which it is computed, in model.hf_model."
)


def _taken_apart(index: Any) -> tuple[int | None, tuple[Any, ...]]:
    """The layer that an index selects, or None unless it is exactly one; and the rest of it."""
    first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
    if isinstance(first, (bool, slice)) or (isinstance(first, Tensor) and first.ndim):
        return None, rest
    if getattr(first, "dtype", None) in (torch.bool, bool):
        return None, rest
    try:
        return as_int(first), rest
    except TypeError:
        return None, rest


def _on_copies(func: Any, args: Any, kwargs: Any, meant: list[LayerStack], counted: bool) -> Any:
    """Call torch with stacked copies, and write to the layers what it wrote to the copies."""
    stacks = {id(one): one for one in tree_leaves((args, kwargs)) if isinstance(one, LayerStack)}
    copies = {key: stack._copied() for key, stack in stacks.items()}
    before = {key: (version(copy), copy.shape, copy.dtype) for key, copy in copies.items()}

    def copied(x: Any) -> Any:
        return copies[id(x)] if isinstance(x, LayerStack) else x

    whole_args, whole_kwargs = tree_map(copied, (args, kwargs))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not meant):
        result = func(*whole_args, **whole_kwargs)
    for key, copy in copies.items():
        was, *form = before[key]
        if [copy.shape, copy.dtype] != form:
            raise _of_parameters(func)
        if any(one is stacks[key] for one in meant) or (counted and version(copy) != was):
            if counted and version(copy) == was:
                raise _of_parameters(func)
            stacks[key]._write(copy)

    def stack_again(x: Any) -> Any:
        return next((stacks[key] for key, copy in copies.items() if x is copy), x)

    written = [key for key, copy in copies.items() if version(copy) != before[key][0]]
    if written or meant:
        result = tree_map(stack_again, result)
    return guarded(result, list(copies.values()))


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _of_parameters(func: Any) -> WeightError:
    name = getattr(func, "__name__", str(func))
    if name.startswith("__"):
        name = f".{getattr(getattr(func, '__self__', None), '__name__', name)}"
    return WeightError(
        f"{name} does not work on a stack of layers, which is read from the parameters of the "
        "model and has no memory or gradient of its own. Do it to the parameters: "
        "model.hf_model.named_parameters(). To change values, use stack.copy_(values) or "
        "stack[layer, ...] = value; for a tensor of your own, take stack.full()."
    )
