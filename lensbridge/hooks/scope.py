"""Whose hooks act in the code that is running now: one answer for each lens and thread.

Context variables hold it, so a thread that is started with `contextvars.copy_context().run` goes on
with the hooks of the thread that started it (`carry_hooks`), and any other thread begins without.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, Token
from typing import Any, NamedTuple

from torch import nn


class Scope(NamedTuple):
    """What holds in the code that is running now.

    Args:
        acting: the attachment that acts for each lens, by the lens's engine.
        stand_ins: modules with something in their place -> what that is.
    """

    acting: Mapping[int, Any] = {}
    stand_ins: Mapping[nn.Module, Any] = {}


_scope: ContextVar[Scope] = ContextVar("lensbridge_scope", default=Scope())  # noqa: B039
_running: ContextVar[object | None] = ContextVar("lensbridge_running", default=None)

NOBODY = object()
"""Acts for a lens while one of its hooks runs: what the hook runs is a run of its own."""


def acting(engine: object) -> Any:
    """What acts for a lens here: an attachment, NOBODY, or None where nothing was entered."""
    return _scope.get().acting.get(id(engine))


@contextmanager
def entered(engine: object, attachment: object) -> Iterator[None]:
    """Inside, an attachment acts for a lens."""
    scope = _scope.get()
    token = _scope.set(scope._replace(acting={**scope.acting, id(engine): attachment}))
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def run_of(engine: object) -> Iterator[None]:
    """Inside, the model is run by a lens, so the permanent hooks of other lenses do not act."""
    token = _running.set(engine)
    try:
        yield
    finally:
        _running.reset(token)


def is_run_of(engine: object) -> bool:
    """Whether the run that is going on is a lens's own, or no lens's."""
    return _running.get() in (None, engine)


def is_own_run(engine: object) -> bool:
    """Whether a lens itself runs its model here."""
    return _running.get() is engine


def attachments_in(context: Context) -> list[Any]:
    """The attachments that act in a context."""
    return [one for one in context.get(_scope, Scope()).acting.values() if one is not NOBODY]


def leave_all() -> None:
    """Go on with nobody's hooks, as a process does that was forked off."""
    _scope.set(Scope())
    _running.set(None)


@contextmanager
def with_stand_ins(stand_ins: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Inside, these stand in for their modules."""
    scope = _scope.get()
    token = _scope.set(scope._replace(stand_ins={**scope.stand_ins, **stand_ins}))
    try:
        yield
    finally:
        _scope.reset(token)


def stand_in_of(module: nn.Module) -> Any:
    """What is called here in a module's place, or None."""
    return _scope.get().stand_ins.get(module)


class Aside:
    """While a hook of a lens runs, no hook of that lens acts and nothing stands in for a module.

    One for each lens, entered for every call of a hook.
    """

    __slots__ = ("_key", "_last")

    def __init__(self, engine: object) -> None:
        self._key = id(engine)
        self._last: tuple[Scope | None, Scope] = None, Scope()

    def enter(self) -> Token[Scope]:
        """Step aside; gives what `leave` takes."""
        outside = _scope.get()
        last, inside = self._last  # read at once: threads share it
        if outside is not last:  # most hooks of a run are called in one scope
            inside = Scope({**outside.acting, self._key: NOBODY})
            self._last = outside, inside
        return _scope.set(inside)

    def forget(self) -> None:
        """Hold no scope of a run that is over: its attachment has activations."""
        self._last = None, Scope()

    @staticmethod
    def leave(token: Token[Scope]) -> None:
        """Go back to what held before."""
        _scope.reset(token)
