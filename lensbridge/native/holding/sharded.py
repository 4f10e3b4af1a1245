"""Weights that are spread over processes: `fully_shard` (FSDP2), tensor parallelism, `DTensor`.

A weight is sharded because of what owns it, not because of the type that its tensor has at the
moment: `fully_shard` puts whole ordinary parameters into the module while it runs, and takes them
away again.
"""

from typing import Any

from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.elsewhere import where_is
from lensbridge.native.fsdp import gathered, shard_of
from lensbridge.native.holding.kinds import Held

_INSTEAD = (
    "A write would be lost when the parts are put together again. Write to the whole model before "
    "it is sharded, or to the parts, in every process, in model.hf_model."
)
_READ = "gathered from all processes"
_THERE = "Write to it in the process that has it."


def found(module: nn.Module, name: str) -> Held | None:
    """How a parameter of a module is held if it is sharded, otherwise None."""
    where = where_is(module)
    if where is not None:
        return Held("sharded", f"not in this process: {where}", _THERE)
    if shard_of(module, name) is not None:
        return Held("sharded", "sharded over processes by fully_shard", _INSTEAD, _READ)
    parameter = module._parameters.get(name)
    if parameter is not None and hasattr(parameter, "full_tensor"):
        return Held("sharded", "a DTensor, whose parts are in several processes", _INSTEAD, _READ)
    return None


def read(module: nn.Module, name: str) -> Tensor:
    """The whole value, as a copy. Every process has to ask for it.

    Raises:
        RanksError: another process does not ask for it.
        WeightError: another process has all of it.
    """
    where = where_is(module)
    if where is not None:
        raise WeightError(f"This {name} of {type(module).__name__} is not here: {where}.")
    parameter: Any = module._parameters[name]
    kept = shard_of(module, name)
    shard = parameter if kept is None else kept
    if hasattr(shard, "full_tensor"):
        return gathered(module, name, shard)
    return parameter.detach().clone()
