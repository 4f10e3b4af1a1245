"""How a value passes the callbacks of one point."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import EditError, HookError
from lensbridge.hooks.callbacks import Callback, Hook, Sharing
from lensbridge.hooks.scope import Aside


class ReadChain:
    """Callbacks of one point in one attachment that only read."""

    __slots__ = ("callbacks",)

    edits = False

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks = callbacks

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Show the value to every callback."""
        for callback in self.callbacks:
            callback.fired += 1
            callback.fn(value)
        return None


class EditChain:
    """The callbacks of one point in one attachment, run in order; some may change the value.

    What a hook runs is a run of its own: no hook of its lens acts in it.
    """

    __slots__ = ("aside", "callbacks", "hook")

    edits = True

    def __init__(self, hook: Hook, callbacks: list[Callback], aside: Aside) -> None:
        self.hook = hook
        self.aside = aside
        self.callbacks = callbacks

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Show the value to every callback; what they make of it together."""
        current = value
        for callback in self.callbacks:
            callback.fired += 1
            if callback.kind == "read":
                # an edit is written into this very tensor later: a reader keeps a copy
                callback.fn(current.clone() if in_place and current is value else current)
            elif callback.kind == "edit":
                shared = current is not value and isinstance(callback.fn, Sharing)
                current = self._edited(callback, current if shared else current.clone())
            elif callback.kind == "splice":
                current = fitting(callback.fn(current, self.hook), value, self.hook)
            else:
                current = self._with_grad(callback, current)
        return current

    def _edited(self, callback: Callback, given: Tensor) -> Tensor:
        token = self.aside.enter()
        try:
            returned = callback.fn(given, self.hook)
        finally:
            self.aside.leave(token)
        return given if returned is None else fitting(returned, given, self.hook)

    def _with_grad(self, callback: Callback, value: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise HookError(
                f"{self.hook.name}: a backward hook needs gradients, and they are switched off "
                "(torch.no_grad or set_grad_enabled(False))."
            )
        if not value.requires_grad and isinstance(callback.fn, Sharing):
            return value
        given = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
        hook, aside = self.hook, self.aside

        def backward(grad: Tensor) -> Tensor:
            private = grad.clone()
            token = aside.enter()
            try:
                returned = callback.fn(private, hook)
            finally:
                aside.leave(token)
                aside.forget()  # the run itself may be over
            return private if returned is None else fitting(returned, grad, hook)

        given.register_hook(backward)
        return given


def fitting(returned: Any, value: Tensor, hook: Hook) -> Tensor:
    """What a hook returned, on the device of what it replaces.

    Raises:
        EditError: not a tensor, or of another shape or dtype.
    """
    if not isinstance(returned, Tensor):
        raise EditError(
            f"{hook.name}: the hook returned {type(returned).__name__}; return a tensor of shape "
            f"{tuple(value.shape)}, or None and edit in place."
        )
    if returned.shape != value.shape:
        raise EditError(
            f"{hook.name}: the hook returned shape {tuple(returned.shape)}; the point has "
            f"{tuple(value.shape)} (axes {hook.axes})."
        )
    if returned.dtype != value.dtype:
        raise EditError(
            f"{hook.name}: the hook returned {returned.dtype}; the point has {value.dtype}. "
            "Return value.to(activation.dtype)."
        )
    return returned.to(value.device)
