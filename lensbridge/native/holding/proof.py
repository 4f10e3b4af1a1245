"""Proof that a module computes with a weight what its kind says, by one run of a few rows.

The run calls `forward` itself, so no hook sees it, on rows from a generator of its own. What it
finds is kept until the module gets another parameter, class or `forward`.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import unwrap
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lensbridge.native.fsdp import whole_in
from lensbridge.native.holding.offloaded import fetched
from lensbridge.native.holding.shapes import shapes_only

Check: TypeAlias = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of a module and its weight: what the module computes for some rows, what it should, and the sizes
of the numbers that are added up for it, to which rounding is relative."""

_SEED = 20_113

_found: "WeakKeyDictionary[nn.Module, dict[str, tuple[Any, str]]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Kind:
    """A kind of module, as which a module is examined.

    Args:
        computes: what a module of this kind does with its weight, for messages.
        tensors: the names of its parameters and buffers.
        known: the classes whose `forward` is of this kind, by the beginning of the full name of it.
        check: runs a module.
        holds_modules: whether it has other modules in it, such as an activation.
    """

    computes: str
    tensors: tuple[str, ...]
    known: tuple[str, ...]
    check: Check
    holds_modules: bool = False


def hindrance(module: nn.Module, name: str, kind: Kind) -> str:
    """Why a module may not use its parameter as its kind does; "" where it does."""
    stamp = _stamp(module, name)
    kept = _found.setdefault(module, {})
    if name not in kept or any(a is not b for a, b in zip(kept[name][0], stamp, strict=True)):
        kept[name] = (stamp, _examine(module, name, kind))
    return kept[name][1]


def _stamp(module: nn.Module, name: str) -> tuple[Any, ...]:
    """What has to be the same objects for an earlier examination to hold.

    The parameter and a replaced `forward` are not kept alive: they may hold the module.
    """
    parameter, forward = module._parameters.get(name), module.__dict__.get("forward")
    held = None if parameter is None else ref(parameter)
    return held, type(module), None if forward is None else ref(forward)


def _examine(module: nn.Module, name: str, kind: Kind) -> str:
    called = type(module).__name__
    if not _own_forward(module):
        return f"the forward of this {called} was replaced"
    if not kind.holds_modules and any(one is not None for one in module._modules.values()):
        return f"{called} has other modules in it"
    with shapes_only(False), fetched(module), settled(module), torch.no_grad():
        parameter = module._parameters[name]
        if parameter is None or parameter.is_meta:
            return ""  # there are no values, and a read says so
        if not _holds(module, parameter, kind.check) and _all_finite(module):
            return f"{called} does not {kind.computes}"
        if _is_known(module, kind.known):
            return ""
        if _more_tensors(module, kind.tensors):
            return f"{called} is of an unknown kind and has other tensors beside it"
        twin = _twin(module)
        other = twin._parameters[name]
        assert other is not None
        return "" if _holds(twin, other, kind.check) else f"{called} does not {kind.computes}"


def _holds(module: nn.Module, weight: Tensor, check: Check) -> bool:
    try:
        found, wanted, size = check(module, weight.detach())
    except Exception:  # whatever a foreign forward raises: it does not take these rows
        return False
    return isinstance(found, Tensor) and found.shape == wanted.shape and _close(found, wanted, size)


def _all_finite(module: nn.Module) -> bool:
    """Whether no parameter has NaN or infinity in it, which say nothing about the module."""
    own = (one for one in module._parameters.values() if one is not None)
    return all(bool(one.float().isfinite().all()) for one in own)


def _close(found: Tensor, wanted: Tensor, size: Tensor) -> bool:
    """Whether two results are the same up to the rounding of their dtype."""
    eps = max(torch.finfo(one.dtype).eps for one in (found, wanted))
    if wanted.is_cuda and wanted.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        eps = 2.0**-10
    wide = torch.promote_types(wanted.dtype, torch.float32)
    off = (found.to(wide) - wanted.to(wide)).abs()
    return bool((off <= 4 * eps * size.to(wide).abs()).all())


def is_usual(module: nn.Module, known: tuple[str, ...]) -> bool:
    """Whether a module runs the forward of a known kind, and no other code. Runs nothing."""
    return _own_forward(module) and _is_known(module, known)


def _own_forward(module: nn.Module) -> bool:
    """Whether `forward` is the class's own, called by accelerate or compiled perhaps."""
    given: Any = module.__dict__.get("forward")
    if given is None:
        return True
    if "_hf_hook" in module.__dict__:
        given = module.__dict__.get("_old_forward")
    if hasattr(given, "_torchdynamo_orig_callable"):
        given = unwrap(given)
    return getattr(given, "__func__", given) is type(module).forward


def _is_known(module: nn.Module, known: tuple[str, ...]) -> bool:
    forward: Any = type(module).forward
    return f"{forward.__module__}.{forward.__qualname__}".startswith(known)


def _more_tensors(module: nn.Module, names: tuple[str, ...]) -> bool:
    own = {**module._parameters, **module._buffers, **module.__dict__}
    return any(isinstance(one, Tensor) and name not in names for name, one in own.items())


def _twin(module: nn.Module) -> nn.Module:
    """The same module with other values: whatever it does to them shows in large ones."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = {
        name: None if one is None else nn.Parameter(rows_like(one, *one.shape), False)
        for name, one in module._parameters.items()
    }
    return twin


def rows_like(tensor: Tensor, *shape: int) -> Tensor:
    """Normal numbers, the same in each call, with the dtype and device of a tensor."""
    source = torch.Generator(tensor.device).manual_seed(_SEED)
    return torch.randn(*shape, generator=source, device=tensor.device, dtype=tensor.dtype)


@contextmanager
def settled(module: nn.Module) -> Iterator[None]:
    """Run a module for its weights: whole, as in evaluation, without autocast.

    Each mode is put back.
    """
    inner = [one for one in module.modules() if not _changes_itself(one)]
    modes = [(one, one.training) for one in inner]
    devices = (p.device.type for p in module.parameters() if not p.is_meta)
    device = next(devices, "cpu")
    try:
        for one, _ in modes:
            one.training = False
        with whole_in(module), torch.autocast(device, enabled=False):
            yield
    finally:
        for one, mode in modes:
            one.training = mode


def prepare(module: nn.Module, rows: Tensor) -> None:
    """Let torch's own hooks (weight_norm, spectral_norm, prune) make the weight for a forward."""
    for hook in list(module._forward_pre_hooks.values()):
        if type(hook).__module__.startswith("torch.nn.utils."):
            hook(module, (rows,))


def _changes_itself(module: nn.Module) -> bool:
    """bitsandbytes packs its codes anew when a layer runs in evaluation, and has no dropout."""
    return type(module).__module__.startswith("bitsandbytes.")
