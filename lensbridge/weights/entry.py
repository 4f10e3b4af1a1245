"""One weight under its canonical name: how it is read, and what holds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from lensbridge.native.holding import Held
from lensbridge.native.linear import State
from lensbridge.weights.effective import COMPOSED


@dataclass(frozen=True)
class Source:
    """Where a weight comes from.

    Args:
        module: the native module that holds it.
        parameter: the name of the parameter there, which a missing bias does not have.
        how: how it is held; asked only when it is needed, because a module may be run for it.
    """

    module: nn.Module
    parameter: str
    how: Callable[[], Held]

    @property
    def held(self) -> Held:
        """How it is held, and by what."""
        return self.how()

    @property
    def state(self) -> State:
        """How it is held, in one word."""
        held = self.held
        return "composed" if held is COMPOSED else held.holding


class Weight(NamedTuple):
    """A weight: a function that reads it, and where it comes from."""

    read: Callable[[], Tensor]
    source: Source
