"""Steps of long work (cells of a sweep, tokens of a text), told to whoever waits for it.

A context variable holds who is told: who waits for one thread is not told of another one's work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Told: TypeAlias = Callable[[int, int], None]
"""Called with how many steps are done, and how many there are."""

_told: ContextVar[Told | None] = ContextVar("lensbridge_steps", default=None)


@contextmanager
def steps_told_to(told: Told) -> Iterator[None]:
    """Inside, `told` is called between the steps of long work; what it raises ends the work.

    Example:
        >>> with steps_told_to(lambda done, total: print(done, "of", total)):
        ...     tell_step(3, 8)
        3 of 8
    """
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


def tell_step(done: int, total: int) -> None:
    """Tell how many steps of the work are done; nothing happens where nobody waits."""
    told = _told.get()
    if told is not None:
        told(done, total)


def is_told() -> bool:
    """Whether somebody waits."""
    return _told.get() is not None
