"""Multiplier: what a branch's output is multiplied by before it is added."""

from dataclasses import dataclass

from torch import Tensor, nn

from lensbridge.native.linear import fetch


@dataclass(frozen=True)
class Multiplier:
    """What a branch's output is multiplied by before it is added: `number`, or one per channel.

    `held` is the module that holds the numbers of the channels, and the name of the parameter.
    """

    number: float = 1.0
    held: tuple[nn.Module, str] | None = None

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return self.held is None and self.number == 1.0

    def value(self, like: Tensor) -> Tensor | float:
        """The number, or a tensor `[d_model]` on the device of `like`."""
        if self.held is None:
            return self.number
        return fetch(*self.held).to(like.device)

    def __str__(self) -> str:
        return f"{self.number:g}" if self.held is None else self.held[1]
