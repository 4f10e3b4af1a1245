"""PyTorch hooks that carry the stages of sites: one for each side of a module.

They do nothing while the run that they belong to is not active, and where everybody only reads they
take a shorter way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from lensbridge.hooks.callbacks import RunState
from lensbridge.sites.call import Call, Chain, Stage

IsActive: TypeAlias = Callable[[], bool]
Look: TypeAlias = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor | None]]


class Step(NamedTuple):
    """A stage of a site and the callbacks that it is for."""

    stage: Stage
    chain: Chain


def _inert(*_: Any, **__: Any) -> None:
    """What a copy or a pickle of a model has in the place of a hook."""


def _no_hook() -> Callable[..., None]:
    return _inert


class NativeHook(partial[Any]):
    """A function as a PyTorch hook. It belongs to one model: copies of the model do not have it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> Any:
        return _no_hook, ()


def before(steps: list[Step], is_active: IsActive, state: RunState) -> NativeHook:
    """A hook for a module's input.

    Args:
        steps: what is done there, in order.
        is_active: whether the run that they are for is the one that runs now.
        state: of that run.
    """
    looks = _looks(steps)
    return NativeHook(
        _act_before(steps, is_active, state) if looks is None else _look_before(looks, is_active)
    )


def after(steps: list[Step], is_active: IsActive, state: RunState, *, closes: bool) -> NativeHook:
    """A hook for a module's output.

    Args:
        steps: what is done there, in order.
        is_active: whether the run that they are for is the one that runs now.
        state: of that run.
        closes: whether the hook before the module opened contexts that end here.
    """
    looks = None if closes else _looks(steps)
    return NativeHook(
        _act_after(steps, is_active, state, closes)
        if looks is None
        else _look_after(looks, is_active)
    )


def _act_before(steps: list[Step], is_active: IsActive, state: RunState) -> Callable[..., Any]:
    acts = [(step.stage.act, step.chain) for step in steps]
    opens = any(step.stage.around for step in steps)

    def act(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        if not is_active():
            return None
        call = Call(module, args, kwargs or {}, state.memory)
        state.run(acts, call)
        if opens:
            state.open_contexts(module, call.around.values())
        return (call.args, call.kwargs) if call.replaced else None

    return act


def _look_before(looks: list[Look], is_active: IsActive) -> Callable[..., None]:
    def act(module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if is_active():
            value = args[0] if args else Call(module, args, kwargs, {}).input
            for look, run in looks:
                run(look(value))

    return act


def _act_after(
    steps: list[Step], is_active: IsActive, state: RunState, closes: bool
) -> Callable[..., Any]:
    acts = [(step.stage.act, step.chain) for step in steps]

    def act(module: nn.Module, args: Any, *rest: Any) -> Any:
        if not is_active():
            return None
        output = rest[-1]
        if closes:
            state.close_contexts(module, clean=output is not None)
        if output is None:  # called only to clean up after an error
            return None
        call = Call(module, args, rest[0] if len(rest) == 2 else {}, state.memory, output)
        state.run(acts, call)
        return call.output if call.replaced else None

    return act


def _look_after(looks: list[Look], is_active: IsActive) -> Callable[..., None]:
    def act(module: nn.Module, args: Any, *rest: Any) -> None:
        if is_active():
            output = rest[-1]
            value = output if isinstance(output, Tensor) else output[0]
            for look, run in looks:
                run(look(value))

    return act


def _looks(steps: list[Step]) -> list[Look] | None:
    """How to read at a module where nobody does anything but read; None where somebody does."""
    found: list[Look] = [
        (step.stage.look, step.chain.run)
        for step in steps
        if step.stage.look is not None and not step.chain.edits
    ]
    return found if len(found) == len(steps) else None
