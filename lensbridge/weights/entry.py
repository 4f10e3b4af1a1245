"""One weight under its canonical name: how it is read, and what holds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from lensbridge.native.holding import Held
from lensbridge.native.linear import Linear, State
from lensbridge.weights.effective import COMPOSED

Assign: TypeAlias = Callable[[Tensor, Tensor], object]
"""Writes a weight into a tensor that is laid out as its parameter: `assign(stored, value)`."""


@dataclass(frozen=True)
class Source:
    """Where a weight comes from.

    Args:
        module: the native module that holds it.
        parameter: the name of the parameter there, which a missing bias does not have.
        how: how it is held; asked only when it is needed, because a module may be run for it.
        linear: the projection that has it, if one has.
        assign: writes it into its parameter, where a read may be no view: a part of a fused weight,
            a gain with an offset, a bias that has a second part.
    """

    module: nn.Module
    parameter: str
    how: Callable[[], Held]
    linear: Linear | None = None
    assign: Assign | None = None

    @property
    def held(self) -> Held:
        """How it is held, and by what."""
        return self.how()

    @property
    def state(self) -> State:
        """How it is held, in one word."""
        held = self.held
        return "composed" if held is COMPOSED else held.holding

    @property
    def stored(self) -> nn.Parameter | None:
        """The parameter; None for a bias that the module does not have."""
        return self.module._parameters.get(self.parameter)


class Weight(NamedTuple):
    """A weight: a function that reads it, and where it comes from."""

    read: Callable[[], Tensor]
    source: Source
