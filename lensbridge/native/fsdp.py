"""Parameters that `fully_shard` (FSDP2) spreads over processes.

Around a forward pass a module holds the whole parameter for a while, as an ordinary tensor which is
dropped later. What counts is the owner: the shard that this process keeps all the time.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lensbridge.native.agreement import agree

__all__ = [
    "casts_output",
    "finished",
    "gathered",
    "is_fully_sharded",
    "name_modules",
    "resuming",
    "shard_of",
    "whole_in",
]

_OWNERS: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
"""Module -> name of a parameter -> a weak reference to what FSDP keeps of it."""

_PATHS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Module -> its path in the model that was opened, which is the same on every rank."""


def name_modules(paths: dict[nn.Module, str]) -> None:
    """Note what the modules of a model are called, for `gathered`."""
    _PATHS.update(paths)


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on the module or on one around it."""
    return bool(module.__dict__.get("_is_fsdp_managed_module", False))


def shard_of(module: nn.Module, name: str) -> Tensor | None:
    """The piece of a parameter that this process keeps, a DTensor; None without `fully_shard`."""
    if not is_fully_sharded(module):
        return None
    if module not in _OWNERS:
        _look()
    owner = _OWNERS.get(module, {}).get(name, lambda: None)()
    return None if owner is None else owner.sharded_param


def gathered(module: nn.Module, name: str, shard: Any) -> Tensor:
    """The whole of a parameter, on every rank. All ranks have to ask for it.

    Args:
        module: that has it.
        name: of the parameter in the module.
        shard: the piece of this process.

    Raises:
        RanksError: another rank reads another parameter, or none.
    """
    path = _PATHS.get(module, type(module).__name__)
    for dim, placement in enumerate(shard.placements):
        if not placement.is_replicate():
            agree(
                f"read {path}.{name} {tuple(shard.shape)}",
                shard.device_mesh.get_group(dim),
                "Weights of this model are spread over the ranks, and reading one gathers it: "
                "read the same weights on every rank, in the same order.",
            )
    return shard.full_tensor().detach()


def casts_output(module: nn.Module) -> bool:
    """Whether FSDP gives out the module's output in another precision than it is computed in."""
    if not is_fully_sharded(module):
        return False
    policy = getattr(_state_of(module), "_mp_policy", None)
    return policy is not None and policy.output_dtype is not None


@contextmanager
def whole_in(module: nn.Module) -> Iterator[None]:
    """Inside, a module has its whole parameters, to be run on its own. All ranks have to do it."""
    put: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    try:
        for one in module.modules():
            for name, held in one._parameters.items():
                shard = shard_of(one, name)
                if shard is not None:
                    value = nn.Parameter(gathered(one, name, shard), requires_grad=False)
                    one._parameters[name] = value
                    put.append((one, name, held))
        yield
    finally:
        for one, name, held in put:
            one._parameters[name] = held


@contextmanager
def resuming(root: nn.Module) -> Iterator[None]:
    """Inside, the model may be run though it is running: that run goes on afterwards.

    FSDP takes a pass inside another for a part of it, and at its end drops what the outer one has
    gathered.
    """
    running = _running_in(root)
    roots = [state._state_ctx.iter_forward_root for state in running]
    try:
        yield
    finally:
        for state, outermost in zip(running, roots, strict=True):
            for group in _groups_of(state):
                group.unshard()
                group.wait_for_unshard()
            for one in (state, *_groups_of(state)):
                one._training_state = type(one._training_state)["FORWARD"]
            state._state_ctx.iter_forward_root = outermost


def finished(root: nn.Module, value: Any) -> Any:
    """Let FSDP end a forward pass that an exception cut short, as it ends one that returns.

    It lets go of what it has gathered, and gathers again when gradients come back to the value.

    Args:
        root: the model that was run.
        value: what the pass has come to, or None.

    Returns:
        The value, from which gradients can be computed.
    """
    running = _running_in(root)
    if running and isinstance(value, Tensor) and value._base is not None:
        value = value.clone()  # an in-place edit of a view would take off FSDP's hook
    for state in reversed(running):  # those inside before those around them
        getattr(state, "_modules_to_run_forward", set()).clear()
        value = state._post_forward(root, (), value)
    return value


def _running_in(root: nn.Module) -> list[Any]:
    """What `fully_shard` made for the modules that are running now, from the outside in."""
    if "torch.distributed.fsdp" not in sys.modules or not torch.distributed.is_initialized():
        return []  # nothing can have been sharded, or nothing that is can run
    found = (_state_of(one) for one in root.modules() if is_fully_sharded(one))
    states = {id(one): one for one in found if hasattr(one, "_post_forward")}
    return [one for one in states.values() if one._training_state.name == "FORWARD"]


def _state_of(module: nn.Module) -> Any:
    """What `fully_shard` made for this very module; None where it was called on one around it."""
    from torch.distributed._composable_state import _get_module_state

    return _get_module_state(module)


def _look() -> None:
    """Find what FSDP keeps, in all models."""
    for params in _groups():
        for one in params:
            info = one._module_info
            places = [
                (info.module, info.param_name),
                *zip(info.shared_modules, info.shared_param_names, strict=True),
            ]
            for module, name in places:
                _OWNERS.setdefault(module, {})[name] = ref(one)


def _groups() -> Iterator[list[Any]]:
    from torch.distributed._composable_state import _module_state_mapping

    for held in list(_module_state_mapping.values()):
        for group in _groups_of(held() if isinstance(held, ref) else held):
            yield group.fsdp_params


def _groups_of(state: Any) -> list[Any]:
    """The groups of parameters that are gathered together for a module."""
    found = getattr(state, "_fsdp_param_groups", None)
    if found is None:  # before torch 2.12 there was one
        found = [getattr(state, "_fsdp_param_group", None)]
    return [group for group in found if group is not None]
