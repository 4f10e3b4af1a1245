"""A process that is forked off this one begins without hooks.

It has a copy of the model with the PyTorch hooks on it, and no context that would ever take them
off. A `DataLoader` worker that was started inside `model.hooks(...)` would give edited results.
"""

from typing import Protocol
from weakref import WeakSet

from torch import nn

from lensbridge.forks import in_forked
from lensbridge.hooks.native_hook import NativeHook
from lensbridge.hooks.scope import leave_all
from lensbridge.hooks.standing import Replaced


class Hooks(Protocol):
    """What has hooks on a model: an engine."""

    root: nn.Module
    replaced: tuple[Replaced, ...]

    def forget(self) -> None:
        """Have no callbacks, where the hooks are off the model already."""


_engines: WeakSet[Hooks] = WeakSet()


def bare_when_forked(engine: Hooks) -> None:
    """Let a forked process have this engine without any hook."""
    _engines.add(engine)


@in_forked
def _forget_hooks() -> None:
    leave_all()
    for engine in list(_engines):
        for root in (engine.root, *(one.twin for one in engine.replaced)):
            for module in root.modules():
                _strip(module)
        engine.forget()


def _strip(module: nn.Module) -> None:
    """Take lensbridge's hooks off a module, and leave those of others."""
    with_hooks = [held for name, held in module.__dict__.items() if name in _HOOKS and held]
    ours = [
        key for held in with_hooks for key, hook in held.items() if isinstance(hook, NativeHook)
    ]
    for key in ours:
        for name in (*_HOOKS, *_FLAGS):
            module.__dict__[name].pop(key, None)


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_FLAGS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""What PyTorch notes of hooks, by their keys."""
