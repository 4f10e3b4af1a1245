"""`HookPoint`: an identity module that calls its hook functions with the value that it gets."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lensbridge.errors import HookError

Dir = Literal["fwd", "bwd"]
Dirs = Literal["fwd", "bwd", "both"]
HookFunction: TypeAlias = Callable[..., Any]
NamesFilter: TypeAlias = "Callable[[str], bool] | str | list[str] | None"
FwdHooks: TypeAlias = "Iterable[tuple[str | Callable[[str], bool], HookFunction]]"

_DIRS: dict[str, tuple[Dir, ...]] = {"fwd": ("fwd",), "bwd": ("bwd",), "both": ("fwd", "bwd")}


def directions(dir: str) -> tuple[Dir, ...]:
    """The directions of "fwd", "bwd" or "both".

    Raises:
        HookError: another word.
    """
    if dir not in _DIRS:
        raise HookError(f"A direction is 'fwd', 'bwd' or 'both', not {dir!r}.")
    return _DIRS[dir]


@dataclass(eq=False)
class LensHandle:
    """One function at one point.

    Args:
        user_hook: the function.
        is_permanent: whether `reset_hooks` leaves it on.
        context_level: how many `hooks()` contexts it was added in; None outside all of them.
        detach: removes the hook that calls it, if that is outside the point.
        beside: the functions at the point in its direction, this one among them.
        in_context: whether a context of the lens calls it, until the context ends.
        is_off: whether something else than the end of its context took it off.
    """

    user_hook: HookFunction
    is_permanent: bool = False
    context_level: int | None = None
    detach: Callable[[], None] = field(default=lambda: None, repr=False)
    beside: "list[LensHandle]" = field(default_factory=list, repr=False)
    in_context: bool = False
    is_off: bool = False

    def __post_init__(self) -> None:
        def called(value: Any, hook: Any = None) -> Any:
            return self.user_hook(value, hook=hook)

        called.__name__ = repr(self.user_hook)
        self.called = called

    @property
    def hook(self) -> "Removable":
        """What PyTorch returns for a hook."""
        return Removable(self)

    def remove(self) -> None:
        """Take the function off. Removing twice does no harm."""
        if self in self.beside:
            self.detach()
            self.beside.remove(self)
            self.is_off = True

    def end(self) -> None:
        """Take it off with its context. Gradients of runs inside the context still reach it."""
        if not self.in_context:
            self.remove()
        elif self in self.beside:
            self.beside.remove(self)

    def stays(self, including_permanent: bool, level: int | None) -> bool:
        """Whether a removal of one kind leaves it on."""
        if self.is_permanent:
            return not including_permanent
        return level is not None and self.context_level != level


@dataclass(frozen=True)
class Removable:
    """A function at a point, as PyTorch's `RemovableHandle` has it.

    Args:
        handle: of the function.
    """

    handle: LensHandle

    def hooks_dict_ref(self) -> dict[int, Callable[..., Any]]:
        """The functions at the point, each with its description as `__name__`."""
        return {id(one): one.called for one in self.handle.beside}

    def remove(self) -> None:
        """Take the function off. Removing twice does no harm."""
        self.handle.remove()


class HookPoint(nn.Module):
    """An identity module with hook functions.

    Attributes:
        name: its path in the root module, once `setup` was called there.
        ctx: a dictionary for the functions, until `reset_hooks`.
        fwd_hooks: the handles of functions on activations; `bwd_hooks` on gradients.

    Example:
        >>> import torch
        >>> point = HookPoint()
        >>> point.add_hook(lambda value, hook: value + 1)
        >>> point(torch.zeros(2))
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None
        self.ctx: dict[str, Any] = {}
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []

    def add_hook(
        self,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function here.

        Args:
            hook: `hook(value, hook=point)`; edits in place or returns a new value.
            dir: "fwd" for the activation, "bwd" for its gradient.
            is_permanent: whether `reset_hooks` leaves it on.
            level: the context that it goes with.
            prepend: call it before the functions that are here already.
        """
        handles = self._handles(dir)
        handle = LensHandle(hook, is_permanent, level, beside=handles)
        handles.insert(0 if prepend else len(handles), handle)

    def add_perma_hook(self, hook: HookFunction, dir: Dir = "fwd") -> None:
        """`add_hook` that `reset_hooks` leaves on."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self, dir: Dirs = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove functions: all that are not permanent, or those of one level."""
        for one in directions(dir):
            for handle in list(self._handles(one)):
                if not handle.stays(including_permanent, level):
                    handle.remove()

    def has_hooks(
        self, dir: Dirs = "both", including_permanent: bool = True, level: int | None = None
    ) -> bool:
        """Whether there are functions here."""
        handles = self.listeners(dir)
        return any(not handle.stays(including_permanent, level) for handle in handles)

    def listeners(self, dir: Dirs = "both", including_permanent: bool = True) -> list[LensHandle]:
        """The functions here."""
        handles = [handle for one in directions(dir) for handle in self._handles(one)]
        return [one for one in handles if including_permanent or not one.is_permanent]

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx.clear()

    def layer(self) -> int:
        """The layer in the name: the 3 of `blocks.3.hook_resid_pre`.

        Raises:
            HookError: there is none.
        """
        parts = (self.name or "").split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise HookError(f"{self.name} is not in a layer.")
        return int(parts[1])

    def forward(self, value: Tensor) -> Tensor:
        """The value, after the functions here."""
        value = value.clone() if self.fwd_hooks else value  # the functions may edit in place
        for handle in list(self.fwd_hooks):  # a function may remove and add some, for the next run
            returned = call(handle.user_hook, value, self)
            value = value if returned is None else returned
        return self._with_gradient_hooks(value) if self.bwd_hooks else value

    def _with_gradient_hooks(self, value: Tensor) -> Tensor:
        if not value.requires_grad:
            return value
        passed = value.clone()
        for handle in self.bwd_hooks:
            hook = handle.user_hook
            passed.register_hook(lambda grad, hook=hook: changed(hook, grad, self))
        return passed

    def _handles(self, dir: str) -> list[LensHandle]:
        if dir not in ("fwd", "bwd"):
            raise HookError(f"dir is 'fwd' or 'bwd', not {dir!r}.")
        return self.fwd_hooks if dir == "fwd" else self.bwd_hooks

    def extra_repr(self) -> str:
        """Its name."""
        return f"name={self.name!r}"


def changed(hook: HookFunction, value: Tensor, point: HookPoint) -> Tensor:
    """The result of a function on a private copy: what it returns, or the edited copy."""
    given = value.clone()
    returned = call(hook, given, point)
    return given if returned is None else returned


def call(hook: HookFunction, value: Tensor, point: HookPoint) -> Any:
    """Call a function with a value and the point, by keyword if it has a parameter `hook`."""
    try:
        by_name = "hook" in inspect.signature(hook).parameters
    except ValueError:  # builtins without a signature
        by_name = False
    returned = hook(value, hook=point) if by_name else hook(value, point)
    # some notebooks return gradients in a tuple, as PyTorch's own hooks do
    return returned[0] if isinstance(returned, tuple) and len(returned) == 1 else returned
