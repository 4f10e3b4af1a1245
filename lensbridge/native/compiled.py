"""Compiled models: `torch.compile`d code does not look at the hooks of the modules in it.

Whoever hooks a model keeps compiled code from running compiled meanwhile. PyTorch calls this the
stance of the compiler. It belongs to the process: there is one for all threads and all models.
What is compiled stays compiled, and runs again when nobody needs it not to.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock, Thread
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from lensbridge.errors import HookError, LensbridgeError
from lensbridge.forks import in_forked
from lensbridge.native.settings import kernel_in, raw_config

_MARK = "_torchdynamo_orig_callable"
"""What a function that was compiled holds the original in."""


class EagerWhile:
    """Until `remove`, what was compiled runs as plain Python, in the whole process."""

    _lock = RLock()
    _users = 0
    _process = 0
    _ours: Any = None

    def __init__(self) -> None:
        with EagerWhile._lock:
            self._made_in: int | None = EagerWhile._process
            EagerWhile._users += 1  # first: a collected model may take hooks off in between
            if EagerWhile._users == 1:
                _outside_compiled_code(_begin)

    def remove(self) -> None:
        """Let compiled code run again, unless others need it not to. Twice does no harm."""
        with EagerWhile._lock:
            made_in, self._made_in = self._made_in, None
            if made_in != EagerWhile._process:
                return
            EagerWhile._users -= 1
            if not EagerWhile._users:
                _outside_compiled_code(_end)


def _begin() -> None:
    from torch.compiler import set_stance

    EagerWhile._ours = set_stance("force_eager")


def _end() -> None:
    """Go back to the stance before ours, unless somebody has set another since."""
    if not _is_overruled():
        EagerWhile._ours.__exit__(None, None, None)
    EagerWhile._ours = None


def _is_overruled() -> bool:
    """Whether somebody has set another stance while ours should hold."""
    ours = EagerWhile._ours
    return ours is not None and sys.modules["torch._dynamo.eval_frame"]._stance is not ours.stance


def _outside_compiled_code(function: Callable[[], None]) -> None:
    """Call what PyTorch refuses inside compiled code. Whether one is inside depends on the thread.

    Hooks are taken off there when a model is collected, or by a function that was compiled.
    """
    if not inside_compiled_code():
        function()
        return
    thread = Thread(target=function)
    thread.start()
    thread.join()


def inside_compiled_code() -> bool:
    """Whether the caller was called by a function that was compiled."""
    if is_compiling():
        return True
    frames = sys.modules.get("torch._C._dynamo.eval_frame")
    return frames is not None and frames.get_eval_frame_callback() is not None


@dataclass(frozen=True, eq=False)
class Compilable:
    """The modules of one model, any of which may be compiled, at any time.

    Args:
        config: of the model.
        insides: the `__dict__` of each module.
        classes: theirs.
    """

    config: Any
    insides: tuple[dict[str, Any], ...]
    classes: tuple[Any, ...]

    @classmethod
    def of(cls, root: nn.Module) -> "Compilable":
        """Of a model as it is now; once more when modules were replaced."""
        modules = list(root.modules())
        classes = dict.fromkeys(type(one) for one in modules)
        return cls(raw_config(root), tuple(one.__dict__ for one in modules), (*classes,))

    @property
    def is_compiled(self) -> bool:
        """Whether something of it is compiled now."""
        for own in self.insides:  # looked at before each run
            if "forward" in own and _is_compiled(own):
                return True
            if own.get("_compiled_call_impl") is not None or "_orig_mod" in own["_modules"]:
                return True
        return any(hasattr(one.forward, _MARK) for one in self.classes)

    def eagerly(self, others: bool = False) -> list[EagerWhile]:
        """A handle that keeps compiled code from running compiled; none where there is none.

        Args:
            others: whether other code than the model's own runs meanwhile. It may have compiled
                something around the model, which nobody can find: a wrapper, or a training step.
                Models with flex attention are left out: their attention is a compiled function.
        """
        if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
            return []
        flexible = kernel_in(self.config) == "flex_attention"
        everything = EagerWhile._users or (others and not flexible)
        return [EagerWhile()] if everything or self.is_compiled else []

    def refuse_compiled_runs(self) -> None:
        """Raise where hooks on the model would not act.

        Raises:
            HookError: inside a function that was compiled; or the model is compiled, and somebody
                let compiled code run while there are hooks.
        """
        if inside_compiled_code():
            raise HookError(
                "Hooks are put on a model inside a function that is compiled (torch.compile), and "
                "compiled code does not run hooks. Call lensbridge outside that function, or "
                "decorate the part of it that calls lensbridge with @torch.compiler.disable."
            )
        if _is_overruled() and self.is_compiled:
            raise HookError(
                "The model is compiled, and torch.compiler.set_stance was called while hooks were "
                "on a model, so that compiled code runs, which does not run hooks. Set the stance "
                "before hooks are put on, or leave it alone while they are on."
            )

    def refuse_copies(self) -> None:
        """Raise where a copy of the model would run this model's layers.

        Raises:
            LensbridgeError: the `forward` of a module was compiled by itself.
        """
        for own in self.insides:
            wraps = "_orig_mod" in own["_modules"]  # such a module copies well
            if "forward" in own and not wraps and _is_compiled(own):
                raise LensbridgeError(
                    "The model cannot be copied or pickled: module.forward = torch.compile(...) "
                    "put a compiled function into it that belongs to this very model. Compile "
                    "with module.compile() instead, or take it out first: del module.forward."
                )


def _is_compiled(own: dict[str, Any]) -> bool:
    """Whether a module's own `forward` was compiled, or what accelerate or lensbridge put it in."""
    forward = own["forward"]
    inside = own.get("_old_forward"), getattr(forward, "restore", None)
    return any(hasattr(one, _MARK) for one in (forward, *inside))


@in_forked
def _forget() -> None:
    """A forked process has no hooks, so nothing keeps compiled code from running in it."""
    was_eager = EagerWhile._users
    EagerWhile._lock, EagerWhile._users = RLock(), 0
    EagerWhile._process += 1
    if was_eager:
        _outside_compiled_code(_end)
