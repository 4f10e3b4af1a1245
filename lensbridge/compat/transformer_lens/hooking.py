"""Functions for one context, each with the point that it goes to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from lensbridge.compat.transformer_lens.lens_point import LensPoint
from lensbridge.compat.transformer_lens.point import (
    Dir,
    HookFunction,
    HookPoint,
    LensHandle,
    call,
)
from lensbridge.errors import HookNeverFiredError
from lensbridge.model import LensModel


@dataclass(frozen=True, eq=False)
class Hooking:
    """A function and its point.

    Args:
        point: where.
        hook: the function.
        dir: on activations or on gradients.
        named: whether the point was named, so that a run has to pass it.
    """

    point: HookPoint
    hook: HookFunction
    dir: Dir
    named: bool

    @property
    def is_of_lens(self) -> bool:
        """Whether the lens knows the point: the native model has it, and nothing replaces it."""
        return isinstance(self.point, LensPoint) and self.point.is_hooked_by_lens

    def listed(self, level: int) -> "list[Listed]":
        """Put the function in the list of its point.

        Args:
            level: how many contexts it is in.

        Returns:
            Where it stands there. A point of another class may list it more than once, or never.
        """
        if self.is_of_lens:
            assert isinstance(self.point, LensPoint)
            handles = [self.point.show(self.hook, self.dir, level)]
        else:
            before = self.point.listeners(self.dir)
            self.point.add_hook(self.hook, self.dir, level=level)
            handles = [one for one in self.point.listeners(self.dir) if one not in before]
        return [Listed(self, one) for one in handles]


@dataclass(frozen=True, eq=False)
class Listed:
    """A function in the list of its point.

    Args:
        hooking: the function and the point.
        handle: its place in the list.
    """

    hooking: Hooking
    handle: LensHandle

    @property
    def pair(self) -> tuple[Any, HookFunction]:
        """The point and the function, as the lens takes them: not called once the handle is off."""
        point, named = self.hooking.point, self.hooking.named
        assert isinstance(point, LensPoint)
        asked = point.canonical if named else partial(str.__eq__, point.canonical)
        return asked, point.adapted(self._call, self.hooking.dir)

    def _call(self, value: Any, hook: HookPoint) -> Any:
        return None if self.handle.is_off else call(self.hooking.hook, value, hook)


@contextmanager
def in_context(
    lens: LensModel, fwd: list[Hooking], bwd: list[Hooking], level: int
) -> Iterator[None]:
    """Functions in the lists of their points, and called, for the time inside.

    Args:
        lens: the model, which calls those whose points it knows.
        fwd: functions on activations.
        bwd: functions on gradients.
        level: how many contexts this one is in.

    Raises:
        HookNeverFiredError: at the end, if a named point was never passed.
    """
    with ExitStack() as end:
        listed: dict[Dir, list[Listed]] = {"fwd": [], "bwd": []}
        for one in (*fwd, *bwd):
            for own in one.listed(level):
                end.callback(own.handle.end)
                listed[one.dir].append(own)
        with _called(lens, listed["fwd"], listed["bwd"]):
            yield


@contextmanager
def _called(lens: LensModel, *listed: list[Listed]) -> Iterator[None]:
    fwd, bwd = ([one for one in some if one.handle.in_context] for some in listed)
    pairs = [one.pair for one in fwd], [one.pair for one in bwd]
    over = False
    try:
        with lens.hooks(*pairs) if any(pairs) else nullcontext():
            yield
            over = True
    except HookNeverFiredError:
        if not over or not all(one.handle.is_off for one in (*fwd, *bwd)):
            raise
