"""Whose hooks act in the code that is running now: one answer for each lens and thread.

Context variables hold it, so a thread that is started with `contextvars.copy_context().run` goes on
with the hooks of the thread that started it, and any other thread begins without.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from torch import nn

_acting: ContextVar[Mapping[int, Any]] = ContextVar("lensbridge_acting", default={})  # noqa: B039
_running: ContextVar[object | None] = ContextVar("lensbridge_running", default=None)
_skipped: ContextVar[frozenset[nn.Module]] = ContextVar("lensbridge_skipped", default=frozenset())

NOBODY = object()
"""Acts for a lens while one of its hooks runs: what the hook runs is a run of its own."""


def acting(engine: object) -> Any:
    """What acts for a lens here: an attachment, NOBODY, or None where nothing was entered."""
    return _acting.get().get(id(engine))


@contextmanager
def entered(engine: object, attachment: object) -> Iterator[None]:
    """Inside, an attachment acts for a lens."""
    token = _acting.set({**_acting.get(), id(engine): attachment})
    try:
        yield
    finally:
        _acting.reset(token)


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


@contextmanager
def skipping(layers: frozenset[nn.Module]) -> Iterator[None]:
    """Inside, these layers are skipped too."""
    token = _skipped.set(_skipped.get() | layers)
    try:
        yield
    finally:
        _skipped.reset(token)


def is_skipped(layer: nn.Module) -> bool:
    """Whether a layer is to be skipped here."""
    return layer in _skipped.get()


class Aside:
    """While a hook of a lens runs, no hook of that lens acts and no layer is skipped."""

    __slots__ = ("_engine", "_tokens")

    def __init__(self, engine: object) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        acting_now = _acting.set({**_acting.get(), id(self._engine): NOBODY})
        self._tokens: tuple[Token[Any], Token[Any]] = acting_now, _skipped.set(frozenset())

    def __exit__(self, *_: object) -> None:
        _acting.reset(self._tokens[0])
        _skipped.reset(self._tokens[1])
