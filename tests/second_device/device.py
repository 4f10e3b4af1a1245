"""A second device that every machine has: tensors that say they are on `second:0` or `second:1`.

Their values lie in tensors on the CPU, which compute. What a GPU refuses is refused here too: an
operation on tensors of two devices, other than a copy, raises. PyTorch knows the device as a
backend that is written in Python, so autograd works on `second:0` (it takes one device of such a
backend). That is for the whole process, so these checks run in one of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"
FIRST, SECOND = f"{NAME}:0", f"{NAME}:1"
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default,)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


def register() -> bool:
    """Make the device known to PyTorch; gives whether this PyTorch can."""
    try:
        from torch.utils.backend_registration import (
            _DummyBackendModule,
            _setup_privateuseone_for_python_backend,
        )
    except ImportError:
        return False

    class Two(_DummyBackendModule):
        def device_count(self) -> int:
            return 2

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    _setup_privateuseone_for_python_backend(NAME, backend_module=Two())
    for func in (_aten.empty_strided.default, _aten._copy_from.default):
        _kernels.impl(func.name(), partial(_kernel, func), "PrivateUse1")
    return True


_kernels = torch.library.Library("aten", "IMPL")
"""What PyTorch calls without asking a mode, such as for the list in `x[:, [0, 2]]`."""


def _kernel(func: Any, *args: Any, **kwargs: Any) -> Any:
    if func is _aten._copy_from.default:
        source, target = args[:2]
        _held(target).copy_(_held(source))
        return target
    return computed(func, args, kwargs)


class Elsewhere(Tensor):
    """A tensor on the second device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(
        cls, held: Tensor, device: torch.device | None = None, requires_grad: bool = False
    ) -> Any:
        if device is None:  # accelerate makes parameters of the class that a module's has
            return nn.Parameter(held, requires_grad)
        found = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        found.held = held
        return found

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"Elsewhere({self.held}, {self.device})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {self.device} to numpy; use Tensor.cpu()")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return computed(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Inside, tensors can be made on the second device."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives, on the device of its arguments or on the one that it names."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if func is _aten._fused_sdp_choice.default and any(map(_is_there, given)):
        return int(torch.nn.attention.SDPBackend.MATH)
    if func is _aten.histc.default:  # a GPU counts integers too
        args = (args[0].float(), *args[1:])
    place = _device_of(func, args, given)
    options = dict(kwargs)
    if options.get("device") is not None:
        named = torch.device(options["device"])
        place = torch.device(FIRST) if str(named) == NAME else named
        options["device"] = "cpu" if place.type == NAME else place
    out = func(*tree_map(_held, args), **tree_map(_held, options))
    if place.type != NAME:
        return out
    known = {id(one.held): one for one in given if isinstance(one, Elsewhere)}
    return tree_map(lambda one: _moved(one, place, known), out)


def _device_of(func: Any, args: Sequence[Any], given: Sequence[Tensor]) -> torch.device:
    """The device that an operation runs on.

    Raises:
        RuntimeError: its tensors are on two.
    """
    if func in _COPIES:
        return given[0].device
    free = tree_leaves(args[1]) if func in _INDEXED else []  # indices may be on the CPU
    bound = [one for one in given if one.device.type != "cpu" or (one.ndim and _not_in(one, free))]
    places = {str(one.device) for one in bound}
    if len(places) > 1:
        raise RuntimeError(f"{func}: tensors on two devices, {sorted(places)}")
    return bound[0].device if bound else torch.device("cpu")


def _not_in(tensor: Tensor, some: Sequence[Any]) -> bool:
    return all(tensor is not one for one in some)


def _is_there(value: Any) -> bool:
    return isinstance(value, Elsewhere)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _moved(value: Any, place: torch.device, known: Mapping[int, Elsewhere]) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
        return value
    return known[id(value)] if id(value) in known else Elsewhere(value, place)
