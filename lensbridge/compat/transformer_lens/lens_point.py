"""The points of an open model as `HookPoint`s: `model.blocks[0].attn.hook_pattern`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.point import (
    Dir,
    HookFunction,
    HookPoint,
    LensHandle,
    call,
    directions,
)
from lensbridge.compat.transformer_lens.spellings import GRAD, unspelled
from lensbridge.errors import EditError, HookError
from lensbridge.hooks.callbacks import Sharing
from lensbridge.hooks.hook_point import HookHandle
from lensbridge.model import LensModel

PER_HEAD = "hook_attn_in"
"""Points where TransformerLens has a copy for each head, and lensbridge one value."""


def _check_callable(hook: Any) -> None:
    if not callable(hook):
        raise HookError(f"A hook is a function of (value, hook), not {type(hook).__name__}.")


def _nothing() -> None:
    """A function that is on no model has nothing to be taken off."""


class LensPoint(HookPoint):
    """A point of an open model: its hooks are added at lensbridge's own point.

    Args:
        lens: the model.
        name: its name in TransformerLens.

    Attributes:
        own_name: this name; `name` is another while the point is inside a wrapper of its part.
        is_there: False while something else stands in its place. Then it is a plain `HookPoint`.
    """

    def __init__(self, lens: LensModel, name: str) -> None:
        super().__init__()
        self.name: str = name
        self.own_name = name
        self.canonical = unspelled(name, lens.vocabulary.index)
        self.is_there = True
        self.lens = lens
        self.ctx: dict[str, Any] = lens.engine.contexts.setdefault(self.canonical, {})

    @property
    def is_hooked_by_lens(self) -> bool:
        """Whether the lens calls its functions."""
        return self.is_there

    def adapted(self, hook: HookFunction, dir: Dir) -> HookFunction:
        """A function for lensbridge that calls the user's with this point as `hook`."""
        _check_callable(hook)
        if self.canonical.endswith(PER_HEAD) and dir == "fwd":
            heads = self.lens.cfg.n_heads
            return lambda value, hook_: _for_every_head(hook, value, self, heads)
        return Sharing(lambda value, hook_: call(hook, value, self))

    def add_hook(
        self,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function for every run from now on; see `HookPoint.add_hook`."""
        if not self.is_there:
            super().add_hook(hook, dir, is_permanent, level, prepend)
            return
        handles = self._handles(dir)
        attached = self.lens.add_hook(self.canonical, self.adapted(hook, dir), dir, is_permanent)
        handle = LensHandle(hook, is_permanent, level, attached.remove, handles)
        if prepend:
            self._last_goes_first(attached)
        handles.insert(0 if prepend else len(handles), handle)

    def show(self, hook: HookFunction, dir: Dir, level: int) -> LensHandle:
        """List a function that a context of the lens calls, until it is taken off.

        Returns:
            Its handle. The function is not called once it `is_off`.

        Raises:
            HookError: it is no function.
        """
        _check_callable(hook)
        handles = self._handles(dir)
        handle = LensHandle(hook, context_level=level, beside=handles, in_context=True)
        handles.append(handle)
        return handle

    def _last_goes_first(self, attached: HookHandle) -> None:
        engine = self.lens.engine
        here = [one for one in engine.permanent if one.name == self.canonical]
        others = [one for one in here if one not in attached.callbacks]
        engine.remove(others)
        engine.add(others)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the model never calls the point as a module.

        Raises:
            HookError: always, while the point is in its place.
        """
        return self._with_hook(super().register_forward_hook, *args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `register_forward_hook`."""
        return self._with_hook(super().register_forward_pre_hook, *args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `register_forward_hook`."""
        return self._with_hook(super().register_full_backward_hook, *args, **kwargs)

    def _with_hook(self, register: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_there:
            raise HookError(
                f"{self.name} is a point of a model, where PyTorch's own hooks do not act. Use "
                "add_hook(function), or add_hook(function, dir='bwd') for gradients."
            )
        return register(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LensPoint":
        return type(self)(memo.get(id(self.lens), self.lens), self.own_name)

    def leave(self) -> None:
        """Let something else stand in its place; its functions go with it."""
        for handle in self.listeners():
            handle.detach()
            handle.detach = _nothing
        self.is_there = False

    def come_back(self) -> None:
        """Stand in its place again, with its functions."""
        self.is_there = True
        for dir in directions("both"):
            for handle in self._handles(dir):
                if handle.in_context:
                    continue
                hook = self.adapted(handle.user_hook, dir)
                added = self.lens.add_hook(self.canonical, hook, dir, handle.is_permanent)
                handle.detach = added.remove

    def forward(self, value: Tensor) -> Tensor:
        """The value after the functions here, while something else stands in its place.

        Raises:
            HookError: the point is in its place, where the model computes its value.
        """
        if not self.is_there:
            return super().forward(value)
        raise HookError(f"{self.name} is a point of a model: run the model, not the point.")

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx.clear()


class TokensPoint(LensPoint):
    """The ids that a model reads: `hook_tokens`, with `cfg.use_hook_tokens`. Not in caches.

    Args:
        lens: the model.
    """

    called = "hook_tokens"
    is_hooked_by_lens = False

    def __init__(self, lens: LensModel) -> None:
        HookPoint.__init__(self)
        self.name = self.own_name = self.called
        self.canonical = self.called
        self.is_there = True
        self.lens = lens

    def add_hook(
        self,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function on the ids of every run from now on.

        Raises:
            HookError: a hook on gradients, which ids do not have.
        """
        if dir != "fwd":
            raise HookError("hook_tokens has ids, which have no gradient.")
        HookPoint.add_hook(self, hook, dir, is_permanent, level, prepend)

    def forward(self, value: Tensor) -> Tensor:
        """The ids, after the functions at this point."""
        return HookPoint.forward(self, value)


def by_head(name: str, value: Tensor, heads: int) -> Tensor:
    """A value with the axes that it has in TransformerLens.

    Shapes: `[..., pos, d_model]` -> `[..., pos, head, d_model]` at `hook_attn_in`, else unchanged.
    """
    if not name.removesuffix(GRAD).endswith(PER_HEAD) or name.endswith(GRAD):
        return value
    return value.unsqueeze(-2).expand(*value.shape[:-1], heads, -1)


def _for_every_head(hook: HookFunction, value: Tensor, point: HookPoint, heads: int) -> Any:
    """Call a function with a copy of the value for each head.

    Raises:
        EditError: the function made the copies differ.
    """
    given = value.unsqueeze(-2).repeat_interleave(heads, dim=-2)
    returned = call(hook, given, point)
    new = given if returned is None else returned
    first = new[..., 0, :]
    if not bool((new == first.unsqueeze(-2)).all()):
        raise EditError(
            f"{point.name} is one value for all heads, and this hook made them differ. Hook "
            "hook_q_input, hook_k_input and hook_v_input of the layer: these are one for each head."
        )
    return None if torch.equal(first, value) else first
