"""The points of an open model as `HookPoint`s: `model.blocks[0].attn.hook_pattern`."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.point import (
    Dir,
    HookFunction,
    HookPoint,
    LensHandle,
    call,
)
from lensbridge.errors import EditError, HookError
from lensbridge.hooks.methods import HookHandle
from lensbridge.model import LensModel

RENAMED = {"unembed.hook_in": "ln_final.hook_out", "unembed.hook_out": "hook_logits"}
"""Names in TransformerLens's caches -> the names that lensbridge lists instead."""

SPELLED = {new: old for old, new in RENAMED.items()}

GRAD = "_grad"

PER_HEAD = "hook_attn_in"
"""Points where TransformerLens has a copy for each head, and lensbridge one value."""


def spelled(name: str) -> str:
    """A name of lensbridge as TransformerLens's caches list it, also of a gradient.

    Example:
        >>> spelled("hook_logits_grad"), spelled("hook_embed")
        ('unembed.hook_out_grad', 'hook_embed')
    """
    end = GRAD if name.endswith(GRAD) else ""
    plain = name.removesuffix(end) if end else name
    return SPELLED.get(plain, plain) + end


def unspelled(name: str) -> str:
    """A name of TransformerLens's caches as lensbridge has it."""
    end = GRAD if name.endswith(GRAD) else ""
    plain = name.removesuffix(end) if end else name
    return RENAMED.get(plain, plain) + end


class LensPoint(HookPoint):
    """A point of an open model: its hooks are added at lensbridge's own point.

    Args:
        lens: the model.
        name: its name in TransformerLens.
    """

    def __init__(self, lens: LensModel, name: str) -> None:
        super().__init__()
        self.name: str = name
        self.canonical = RENAMED.get(name, name)
        self.lens = lens
        self.ctx: dict[str, Any] = lens.engine.contexts.setdefault(self.canonical, {})

    def adapted(self, hook: HookFunction, dir: Dir) -> HookFunction:
        """A function for lensbridge that calls the user's with this point as `hook`."""
        if not callable(hook):
            raise HookError(f"A hook is a function of (value, hook), not {type(hook).__name__}.")
        if self.canonical.endswith(PER_HEAD) and dir == "fwd":
            heads = self.lens.cfg.n_heads
            return lambda value, hook_: _for_every_head(hook, value, self, heads)
        return lambda value, hook_: call(hook, value, self)

    def add_hook(
        self,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function for every run from now on; see `HookPoint.add_hook`."""
        handles = self._handles(dir)
        attached = self.lens.add_hook(self.canonical, self.adapted(hook, dir), dir, is_permanent)
        handle = LensHandle(hook, is_permanent, level, attached.remove)
        if prepend:
            self._last_goes_first(attached)
        handles.insert(0 if prepend else len(handles), handle)

    def _last_goes_first(self, attached: HookHandle) -> None:
        engine = self.lens.engine
        here = [one for one in engine.permanent if one.name == self.canonical]
        others = [one for one in here if one not in attached.callbacks]
        engine.remove(others)
        engine.add(others)

    def forward(self, value: Tensor) -> Tensor:
        """Refused: the model computes the value of this point."""
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

    def __init__(self, lens: LensModel) -> None:
        HookPoint.__init__(self)
        self.name = self.called
        self.canonical = self.called
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
