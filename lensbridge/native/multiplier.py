"""Multiplier: what a branch's output is multiplied with before it is added."""

from dataclasses import dataclass

from torch import Tensor, nn

from lensbridge.native.linear import fetch


@dataclass(frozen=True)
class Multiplier:
    """What multiplies a branch's output before it is added: a number, or one for each channel.

    `held` is the module and the name of the parameter that holds the numbers.
    """

    number: float = 1.0
    held: tuple[nn.Module, str] | None = None

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return self.held is None and self.number == 1.0

    def value(self, like: Tensor) -> Tensor | float:
        """The number, or `[m]` on the device of what it multiplies."""
        if self.held is None:
            return self.number
        return fetch(*self.held).to(like.device)

    def __str__(self) -> str:
        return f"{self.number:g}" if self.held is None else self.held[1]
