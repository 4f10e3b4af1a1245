"""The rules that say how a weight is held, and one reader for each kind."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.holding import adapted, offloaded, quantized, sharded
from lensbridge.native.holding.kinds import PLAIN, Held, Holding, Measure, opaque
from lensbridge.native.holding.shapes import reads_shapes

Rule: TypeAlias = Callable[[nn.Module, str], Held | None]
Reader: TypeAlias = Callable[[nn.Module, str, Measure | None], Tensor]


def held(module: nn.Module, name: str = "weight") -> Held:
    """How a parameter or buffer of a module is held. Runs nothing."""
    return next(one for rule in _RULES if (one := rule(module, name)) is not None)


def read(
    module: nn.Module,
    name: str = "weight",
    measure: Measure | None = None,
    how: Held | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """The whole float value: the parameter itself where it is plain, otherwise a copy.

    Args:
        module: the module that has it.
        name: the name of the parameter or buffer there.
        measure: reads it by running the module, for what has no other way.
        how: how it is held, where more is known than `held` says.
        shape: of the float value, where the stored tensor does not say it.

    Raises:
        WeightError: the module has no such tensor, or it has no values.
    """
    if reads_shapes():
        return _without_values(module, name, shape)
    how = held(module, name) if how is None else how
    return READERS[how.holding](module, name, measure)


def _without_values(module: nn.Module, name: str, shape: tuple[int, ...] | None) -> Tensor:
    held = _tensor(module, name)
    floats = held is not None and held.is_floating_point() and held.itemsize > 1
    dtype = held.dtype if held is not None and floats else torch.float32
    sizes = stored(module, name).shape if shape is None else shape
    return torch.empty(sizes, dtype=dtype, device="meta")


def stored(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer as the module has it at the moment.

    Raises:
        WeightError: the module has no such tensor.
    """
    tensor = _tensor(module, name)
    if tensor is None:
        raise WeightError(f"{type(module).__name__} has no {name}.")
    return tensor


def place_of(module: nn.Module, like: Tensor) -> torch.device:
    """Where a read of this module gives its tensors, one of which is `like`."""
    if reads_shapes():
        return torch.device("meta")
    return offloaded.execution_device(module) or like.device


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    found: Tensor | None = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


def _ordinary(module: nn.Module, name: str) -> Held | None:
    """Opaque unless it is a parameter or buffer of one of torch's own float types."""
    tensor = _tensor(module, name)
    if tensor is None:
        return opaque(f"no parameter of {type(module).__name__}")
    if type(tensor) not in (nn.Parameter, Tensor):
        return opaque(f"stored as a {type(tensor).__name__}")
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        return opaque(f"stored as {str(tensor.dtype).removeprefix('torch.')}")
    return None


_RULES: tuple[Rule, ...] = (
    adapted.found,
    sharded.found,
    quantized.found,
    offloaded.found,
    _ordinary,
    lambda module, name: PLAIN,
)


def _dequantized(module: nn.Module, name: str, measure: Measure | None) -> Tensor:
    found = quantized.read(module, name)
    return _measured(module, name, measure) if found is None else found


def _measured(module: nn.Module, name: str, measure: Measure | None) -> Tensor:
    return stored(module, name).detach().clone() if measure is None else measure()


READERS: dict[Holding, Reader] = {
    "plain": lambda module, name, measure: stored(module, name),
    "sharded": lambda module, name, measure: sharded.read(module, name),
    "quantized": _dequantized,
    "adapted": _measured,
    "offloaded": lambda module, name, measure: offloaded.read(module, name),
    "opaque": _measured,
}
"""How the whole float value of each kind is read."""
