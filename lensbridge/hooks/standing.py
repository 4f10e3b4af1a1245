"""Something stands in a module's place for one call: the module's `forward` is shadowed meanwhile.

Other threads that run the same modules get the native forward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

from lensbridge.forks import in_forked
from lensbridge.hooks.scope import stand_in_of, with_stand_ins
from lensbridge.sites.call import Stage

StandIn: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""`stand_in(native forward, args, kwargs)` gives what the module is to return."""

_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def standing_in(stand_ins: Mapping[nn.Module, StandIn]) -> Iterator[None]:
    """Inside, and in this thread only, calls of these modules go to their stand-ins."""
    for module in stand_ins:
        _shadow(module)
    try:
        with with_stand_ins(stand_ins):
            yield
    finally:
        for module in stand_ins:
            _uncover(module)


def _shadow(module: nn.Module) -> None:
    with _lock:
        _users[module] = _users.get(module, 0) + 1
        if _users[module] == 1:
            own = "forward" in module.__dict__  # accelerate puts one there
            module.forward = _dispatcher(module, module.forward, own)


def _dispatcher(module: nn.Module, native: Callable[..., Any], own: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        stand_in = stand_in_of(module)
        return native(*args, **kwargs) if stand_in is None else stand_in(native, args, kwargs)

    forward.restore = native if own else None  # type: ignore[attr-defined]
    return forward


def _uncover(module: nn.Module) -> None:
    with _lock:
        if module not in _users:  # a forked process is in the middle of a call of its parent
            return
        _users[module] -= 1
        if _users[module] == 0:
            del _users[module]
            _restore(module)


def _restore(module: nn.Module) -> None:
    native = module.__dict__["forward"].restore
    if native is None:
        del module.__dict__["forward"]
    else:
        module.forward = native


@in_forked
def _uncover_all() -> None:
    """A forked process has the native forwards."""
    global _lock
    _lock = Lock()
    for module in list(_users):
        if hasattr(module.__dict__.get("forward"), "restore"):
            _restore(module)
    _users.clear()


@dataclass(frozen=True, eq=False)
class Replaced:
    """A module with something else in its place in every run of one lens.

    Args:
        path: the beginning of the names of the points inside it, without the last dot.
        module: the native module, which stays as it is for everybody else.
        twin: what is run where the native module itself is wanted. It shares everything with the
            module but hooks and the shadowed `forward`.
        stand_in: what stands there.
        outside: points that are the module's result, and are read inside it where that is the same.
    """

    path: str
    module: nn.Module
    twin: nn.Module
    stand_in: StandIn
    outside: frozenset[str] = frozenset()

    def placed(self, name: str, stage: Stage) -> Stage:
        """Where a point is read now: one inside the module at its twin, its result around both."""
        if stage.module is self.module and name.startswith(f"{self.path}."):
            return stage._replace(module=self.twin)
        inside = name in self.outside and any(one is stage.module for one in self.module.modules())
        return stage._replace(module=self.module) if inside else stage


def twin_of(module: nn.Module) -> nn.Module:
    """A module that shares parameters, buffers and submodules with another, but no hooks."""
    twin = copy(module)
    for name, held in nn.Module().__dict__.items():
        if "hooks" in name:
            twin.__dict__[name] = copy(held)
    return twin
