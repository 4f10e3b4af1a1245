"""Projections and their weights as the model uses them: plain, offloaded, adapted or quantized.

`Linear.weight` gives a plain weight as a view, so writing to it edits the model. The others come as
copies, and `Linear.state` says why.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError

State = Literal["plain", "offloaded", "adapted", "opaque", "composed"]
"""How a weight is stored. Every state but "plain" gives copies.

plain: the module's own tensor. offloaded: fetched when it is read, from where accelerate keeps it
or from the processes that have its parts. adapted: a LoRA layer, base plus
delta. opaque: quantized or unknown, read by running the module on the identity matrix. composed: a
product of several weights (latent attention).
"""


@dataclass(frozen=True)
class Linear:
    """A projection of the model, whatever way its weight is stored.

    Args:
        module: the native module.
        transposed: whether it stores `[in, out]` (Conv1D) rather than `[out, in]` (Linear).
        n_in: the width of its input.
        n_out: the width of its output.
    """

    module: nn.Module
    transposed: bool
    n_in: int
    n_out: int

    @property
    def state(self) -> State:
        """How the weight is stored, which decides whether a read is a view or a copy."""
        if "base_layer" in self.module._modules:
            return "adapted"
        weight = self.module._parameters.get("weight")
        if weight is not None and _is_sharded(weight):
            return "offloaded"
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


def _is_sharded(weight: Tensor) -> bool:
    """Whether other processes have parts of it (fully_shard, tensor parallelism)."""
    return hasattr(weight, "full_tensor")


def _is_plain_float(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.is_floating_point()


def execution_device(module: nn.Module) -> torch.device | None:
    """The device on which accelerate runs an offloaded module; None for any other module."""
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
    """A parameter or buffer; a fetched copy where accelerate keeps it off the device."""
    parameter = _held(module, name)
    if parameter is None:
        raise WeightError(f"{type(module).__name__} has no {name}.")
    if _is_sharded(parameter):
        sharded: Any = parameter
        return sharded.full_tensor().detach()
    if not parameter.is_meta:
        return parameter
    from accelerate.utils import align_module_device

    with align_module_device(module):
        loaded = _held(module, name)
        if loaded is None or loaded.is_meta:
            raise WeightError(
                f"The {name} of {type(module).__name__} is on the meta device, and no offload hook "
                "says where its values are. Load the model with weights, or with an offload_folder."
            )
        return loaded.detach().clone()


def _held(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters[name] if name in module._parameters else module._buffers[name]
