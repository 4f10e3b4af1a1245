"""What a branch's output is multiplied by before it is added, and what is added beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lensbridge.native.linear import fetch


@dataclass(frozen=True)
class Multiplier:
    """What a branch's output, or the stream before it, is multiplied by.

    It is `number` times each tensor in `held`: a module that holds one number, or one for each
    channel, and the name of the parameter or buffer. Of the tensors in `bounded` it is the tanh.
    """

    number: float = 1.0
    held: tuple[tuple[nn.Module, str], ...] = ()
    bounded: frozenset[tuple[nn.Module, str]] = frozenset()

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return not self.held and self.number == 1.0

    def value(self, like: Tensor) -> Tensor | float:
        """The number, or a tensor `[d_model]` on the device of `like`."""
        value: Tensor | float = self.number
        for one in self.held:
            tensor = fetch(*one).to(like.device)
            value = (tensor.tanh() if one in self.bounded else tensor) * value
        return value

    def __str__(self) -> str:
        number = [] if self.held and self.number == 1.0 else [f"{self.number:g}"]
        return " * ".join([*number, *map(self._told, self.held)])

    def _told(self, one: tuple[nn.Module, str]) -> str:
        return f"tanh({one[1]})" if one in self.bounded else one[1]


@dataclass(frozen=True)
class Constant:
    """What is added to the stream whatever the input is: a sum of products of parameters.

    Each product has a tensor.
    """

    products: tuple[Multiplier, ...] = ()

    @property
    def is_zero(self) -> bool:
        """Whether there is none."""
        return not self.products

    @property
    def tensor(self) -> Tensor:
        """Shapes: `[d_model]`, where the first parameter is; there has to be one."""
        like = fetch(*self.products[0].held[0])
        total = torch.zeros_like(like)
        for one in self.products:
            total = total + one.value(like)
        return total

    def __str__(self) -> str:
        return " + ".join(map(str, self.products))
