"""Hooks and other threads and processes: what goes along, and what refuses to."""

from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from lensbridge.errors import HookError
from lensbridge.hooks.scope import attachments_in

if TYPE_CHECKING:
    from lensbridge.hooks.engine import Engine

P = ParamSpec("P")
R = TypeVar("R")


def carry_hooks(function: Callable[P, R]) -> Callable[P, R]:
    """A function that has the hooks of this place in whichever thread calls it.

    The hooks of a `with model.hooks(...)` block act in the thread that opened it. Wrap what other
    threads are to run, and call it while the block is open. Hooks of `model.add_hook` act in all
    threads, without this.

    Args:
        function: what a thread pool or `Thread` is to call.

    Raises:
        HookError: when it is called after the block has ended.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> import lensbridge, torch
        >>> model = lensbridge.load("demo")
        >>> batches = [model.to_tokens("A test."), model.to_tokens("Another one.")]
        >>> with model.hooks([("mlp_out", lambda value, hook: value * 0)]):
        ...     here = [model(ids) for ids in batches]
        ...     with ThreadPoolExecutor(2) as pool:
        ...         there = list(pool.map(lensbridge.carry_hooks(model), batches))
        >>> all(map(torch.equal, here, there))
        True
    """
    context = copy_context()

    @wraps(function, updated=())
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        if not all(one.is_on for one in attachments_in(context)):
            raise HookError(
                "A function of carry_hooks was called after the `with` block had ended whose hooks "
                "it has. Wait inside the block until the threads are done."
            )
        return context.copy().run(function, *args, **kwargs)  # a context is entered by one thread

    return carried


def refuse_to_pickle(engine: "Engine") -> None:
    """Raise where a pickle of a model would lack what acts in its runs.

    Raises:
        HookError: with what there is, and how to take it off.
    """
    acting = dict.fromkeys(f"{one.kind} at {one.name}" for one in engine.listening)
    acting |= dict.fromkeys(f"a replaced {one.path}" for one in engine.replaced)
    if not acting:
        return
    listed = ", ".join(list(acting)[:4]) + (f" and {len(acting) - 4} more" * (len(acting) > 4))
    raise HookError(
        f"The model has hooks on it ({listed}), which cannot be pickled: another process would "
        "give results without them. Take them off first (leave the `with` block; "
        "reset_hooks(including_permanent=True), reset_saes()), and put them on in that process."
    )
