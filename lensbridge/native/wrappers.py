"""Modules around a model that run it elsewhere or faster, and what is inside them.

`torch.compile`, `DataParallel`, `DistributedDataParallel` and the like hold the model that was
given to them and compute what it computes. PyTorch hooks belong on the modules inside.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import nn

from lensbridge.errors import LoadError

_INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
}
"""Where a wrapper holds the model, by the name of its class."""

_REFUSED = {
    "FullyShardedDataParallel": (
        "FSDP keeps the weights of {0} in flat pieces, so its modules cannot be read one by one. "
        "Load the model before you wrap it, or shard it with torch.distributed.fsdp.fully_shard."
    ),
    "ScriptModule": (
        "{0} is a TorchScript module, which runs no hooks. Load the Python module that it was "
        "made from."
    ),
    "GraphModule": (
        "{0} is a torch.fx graph, whose modules do not run one after another. Load the module "
        "that it was traced from."
    ),
}
"""Modules that have no others to hook, by the name of their class."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all wrappers, or the module itself.

    Raises:
        LoadError: a wrapper that hooks do not reach into; the message says what to do.
    """
    while (inside := _inside(type(module))) is not None:  # type: ignore[arg-type]
        if inside not in _INSIDE.values():
            raise LoadError(inside.format(type(module).__name__))
        module = getattr(module, inside)
    return module


def core_of(model: nn.Module) -> nn.Module:
    """The model inside all wrappers, a PEFT model among them."""
    model = unwrapped(model)
    while hasattr(model, "get_base_model"):
        wrapper: Any = model
        model = unwrapped(wrapper.get_base_model())
    return model


@lru_cache(maxsize=256)
def _inside(cls: type[nn.Module]) -> str | None:
    """Where a wrapper holds its model, or why it cannot be opened; None for other modules."""
    known = {**_INSIDE, **_REFUSED}
    return next((known[one.__name__] for one in cls.__mro__ if one.__name__ in known), None)


def named_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`, with what is inside wrappers in their places."""
    seen: set[nn.Module] = set()

    def walk(path: str, one: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        one = unwrapped(one)
        if one in seen:
            return
        seen.add(one)
        yield path, one
        for name, child in one._modules.items():
            if child is not None:
                yield from walk(f"{path}.{name}" if path else name, child)

    yield from walk("", module)
