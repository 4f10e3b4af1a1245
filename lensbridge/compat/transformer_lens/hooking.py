"""Functions for one context, each with the point that it goes to."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from lensbridge.compat.transformer_lens.lens_point import LensPoint
from lensbridge.compat.transformer_lens.point import Dir, HookFunction, HookPoint


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

    @property
    def pair(self) -> tuple[Any, HookFunction]:
        """The point and the function, as the lens takes them."""
        point = self.point
        assert isinstance(point, LensPoint)
        asked = point.canonical if self.named else partial(str.__eq__, point.canonical)
        return asked, point.adapted(self.hook, self.dir)
