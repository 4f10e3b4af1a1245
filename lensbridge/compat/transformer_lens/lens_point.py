"""The points of an open model as `HookPoint`s: `model.blocks[0].attn.hook_pattern`."""

from typing import Any

from torch import Tensor

from lensbridge.compat.transformer_lens.point import (
    Dir,
    HookFunction,
    HookPoint,
    LensHandle,
    call,
)
from lensbridge.errors import HookError
from lensbridge.model import LensModel
from lensbridge.points import HookHandle

RENAMED = {"unembed.hook_in": "ln_final.hook_out", "unembed.hook_out": "hook_logits"}
"""Names that classic caches list, and what lensbridge lists instead."""

SPELLED = {new: old for old, new in RENAMED.items()}

GRAD = "_grad"


def spelled(name: str) -> str:
    """A name of lensbridge as a classic cache lists it, gradients too.

    Example:
        >>> spelled("hook_logits_grad"), spelled("hook_embed")
        ('unembed.hook_out_grad', 'hook_embed')
    """
    end = GRAD if name.endswith(GRAD) else ""
    plain = name.removesuffix(end) if end else name
    return SPELLED.get(plain, plain) + end


def unspelled(name: str) -> str:
    """A name that a classic cache lists as lensbridge's own."""
    end = GRAD if name.endswith(GRAD) else ""
    plain = name.removesuffix(end) if end else name
    return RENAMED.get(plain, plain) + end


class LensPoint(HookPoint):
    """A point of an open model: functions listen at lensbridge's own point.

    Args:
        lens: the model.
        name: as a classic model calls it.
    """

    def __init__(self, lens: LensModel, name: str) -> None:
        super().__init__()
        self.name: str = name
        self.canonical = RENAMED.get(name, name)
        self.lens = lens
        self.ctx: dict[str, Any] = lens.engine.contexts.setdefault(self.canonical, {})

    def adapted(self, hook: HookFunction) -> HookFunction:
        """A function as lensbridge calls it: with this point for `hook`."""
        if not callable(hook):
            raise HookError(f"A hook is a function of (value, hook), not {type(hook).__name__}.")
        return lambda value, hook_: call(hook, value, self)

    def add_hook(
        self,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Listen here in every run from now on; see `HookPoint.add_hook`."""
        handles = self._handles(dir)
        attached = self.lens.add_hook(self.canonical, self.adapted(hook), dir, is_permanent)
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
        """Refused: the model computes what passes here."""
        raise HookError(f"{self.name} is a point of a model: run the model, not the point.")

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx.clear()
