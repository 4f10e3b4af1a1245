"""Weights that accelerate keeps off the device on which they are used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.holding.kinds import Held


def found(module: nn.Module, name: str) -> Held | None:
    """How a tensor of a module is held if it is offloaded, otherwise None.

    While the module runs, accelerate puts a copy of the values into it. It is offloaded then too.
    """
    tensor = {**module._buffers, **module._parameters}.get(name)
    if tensor is None:
        return None
    if any(one.offload and _brings(one, module, name) for one in _hooks(module)):
        return _OFFLOADED
    return (_OFFLOADED if "_hf_hook" in module.__dict__ else _EMPTY) if tensor.is_meta else None


_OFFLOADED = Held(
    "offloaded",
    "offloaded by accelerate, which fetches a copy for each run",
    "Load the model with a device_map that keeps this layer on a device.",
    "as a fetched copy",
)
_EMPTY = Held(
    "offloaded",
    "on the meta device, without values",
    "Load the model with weights, or with an offload_folder.",
    "not at all",
)


def _hooks(module: nn.Module) -> list[Any]:
    """What accelerate does around the forward of a module to place its weights."""
    hook: Any = module.__dict__.get("_hf_hook")
    if hook is None:
        return []
    from accelerate.hooks import AlignDevicesHook, SequentialHook

    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return [one for one in hooks if isinstance(one, AlignDevicesHook)]


def _brings(hook: Any, module: nn.Module, name: str) -> bool:
    return name in module._parameters or hook.offload_buffers


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Give a module the values that accelerate keeps for it, while this lasts."""
    if not any(one.is_meta for one in module.parameters()):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def read(module: nn.Module, name: str) -> Tensor:
    """A copy of the value, fetched.

    Raises:
        WeightError: it has no value anywhere.
    """
    with fetched(module):
        loaded = {**module._buffers, **module._parameters}.get(name)
        if loaded is None or loaded.is_meta:
            raise WeightError(
                f"The {name} of {type(module).__name__} is on the meta device, and no offload hook "
                "says where its values are. Load the model with weights, or with an offload_folder."
            )
        return loaded.detach().clone()


def execution_device(module: nn.Module) -> torch.device | None:
    """The device on which accelerate runs an offloaded module; None for any other module."""
    own = module.parameters(recurse=False)
    if "_hf_hook" not in module.__dict__ or not any(one.is_meta for one in own):
        return None
    for one in _hooks(module):
        if one.execution_device is not None:
            return torch.device(one.execution_device)
    return None
