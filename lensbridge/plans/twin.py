"""A twin of a model: the same modules on tensors that have a shape, a device and no values."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lensbridge.native.holding import execution_device

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class WithoutValues(TorchFunctionMode):
    """Inside, a deep copy of a tensor has no values.

    Args:
        mode: what runs such tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self.valueless(tensor)
        return memo[id(tensor)]

    def valueless(self, tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """A tensor of the same shape and dtype.

        It is on another device if one is given. One that is on no device, in a model without
        weights, is planned as on the CPU.
        """
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode:
            return tensor
        device = device or (torch.device("cpu") if tensor.is_meta else tensor.device)
        known = type(tensor) in _PLAIN or is_traceable_wrapper_subclass(tensor)
        if device == tensor.device and known:
            leaf = tensor if tensor.is_leaf else tensor.detach()
            return self.mode.from_tensor(leaf)
        with self.mode:
            found = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
            )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(found, tensor.requires_grad)
        return found

    def copy(self, thing: Any, memo: dict[int, Any] | None = None) -> Any:
        """A deep copy of anything, its tensors without values."""
        with self:
            return deepcopy(thing, memo)


def mode_of(model: nn.Module) -> FakeTensorMode:
    """What runs tensors without values: the model's own, if it has none with values."""
    for one in model.parameters():
        if isinstance(one, FakeTensor):
            return one.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def twin_of(model: nn.Module, without: WithoutValues) -> nn.Module:
    """A copy of a model whose tensors have no values, so that it takes no memory.

    Weights that accelerate keeps elsewhere lie on the device that computes with them. PyTorch hooks
    are left out, but for those with which transformers records what a model itself asks for.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        _without_offload(module, memo)
        device = execution_device(module)
        held = [*module._parameters.values(), *module._buffers.values()]
        for one in (each for each in held if each is not None):
            if id(one) not in memo:
                memo[id(one)] = without.valueless(one, device)
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            memo[id(hooks)] = type(hooks)(filter(_records, hooks.items()))
    found: nn.Module = without.copy(model, memo)
    for module in found.modules():
        _without_compilation(module)
    return found


def _records(entry: tuple[int, Any]) -> bool:
    return str(getattr(entry[1], "__module__", "")).startswith("transformers.")


def _without_offload(module: nn.Module, memo: dict[int, Any]) -> None:
    """Note copies of accelerate's hooks that move inputs, and fetch no weights."""
    hook = module.__dict__.get("_hf_hook")
    for one in () if hook is None else getattr(hook, "hooks", (hook,)):
        if getattr(one, "offload", False):
            light = copy(one)
            light.offload = False
            light.weights_map = light.tied_params_map = None
            memo[id(one)] = light


def _without_compilation(module: nn.Module) -> None:
    """A compiled forward is bound to the module that it was made for; torch.compile's own module
    makes another one for its copy.
    """
    forward = module.__dict__.get("forward")
    if hasattr(forward, "_torchdynamo_orig_callable") and "_orig_mod" not in module._modules:
        del module.__dict__["forward"]
