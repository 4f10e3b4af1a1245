"""Multiples: finds by what a value is multiplied, in numbers and in parameters of the block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, Value, fitted_scale, unit
from lensbridge.spec import Scale

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"{}": lambda one: one, "tanh({})": torch.tanh}
"""What a block may do with a parameter before it multiplies with it, as a description says it."""


@dataclass(frozen=True)
class Multiple:
    """What a value is multiplied by.

    Args:
        number: the number, 1.0 where there is none.
        held: parameters and buffers of the block, each with one number or one for each channel.
    """

    number: float = 1.0
    held: tuple[str, ...] = ()

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return not self.held and self.number == 1.0

    def times(self, other: "Multiple") -> "Multiple":
        """Both, one after the other."""
        return Multiple(self.number * other.number, (*self.held, *other.held))

    def scale(self, fields: Fields) -> Scale | None:
        """The multiple as a description has it; None if it is one."""
        if self.is_one:
            return None
        number = fields.number(self.number)
        if not self.held:
            return number
        return " * ".join([*self.held, *([str(number)] if self.number != 1.0 else [])])


ONE = Multiple()


class Multiples:
    """The parameters and buffers of one block by which a value can be multiplied.

    Args:
        layer: a call of the block.
        fields: the config, whose numbers can be factors too.
    """

    def __init__(self, layer: Layer, fields: Fields) -> None:
        self.layer = layer
        self.fields = fields
        self.tolerance = layer.trace.tolerance
        self.channels = layer.shape[-1]
        held = dict(self._held())
        self.numbers = {name: one for name, one in held.items() if one.numel() == 1}
        self.vectors = {name: one for name, one in held.items() if one.numel() > 1}

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.layer.call.module.state_dict(keep_vars=True).items():
            wide = tensor.numel() == self.channels == (tensor.shape or (1,))[-1]
            if tensor.is_floating_point() and (wide or tensor.numel() == 1):
                plain = tensor.detach().double().cpu().flatten()
                for said, function in _FUNCTIONS.items():
                    yield said.format(name), function(plain)

    def of(self, factors: Tensor) -> Multiple | None:
        """The multiple whose value is this for each channel, or None.

        Shapes: `[d_model]`.
        """
        constant = float(factors.mean())
        if self._same(torch.full_like(factors, constant), factors):
            return self.of_number(constant)
        for names in self._choices(self.vectors):
            product = torch.stack([self.vectors[name] for name in names]).prod(0)
            left = self._fitted(product, factors)
            rest = None if left is None else self.of_number(left)
            if rest is not None:
                return Multiple(held=names).times(rest)
        return None

    def of_number(self, factor: float) -> Multiple:
        """The multiple that is the same number for each channel.

        One parameter is tried first, then the config, then parameters with another factor.
        """
        if unit(factor, self.tolerance):
            return ONE
        choices = list(self._choices(self.numbers))
        for names in choices[: len(self.numbers)]:
            if self._is(self._left(factor, names), 1.0):
                return Multiple(held=names)
        if isinstance(self.fields.number(factor), str):
            return Multiple(factor)
        for names in choices:
            left = self._left(factor, names)
            if self._is(left, 1.0):
                return Multiple(held=names)
            if self.fields.number(left) in self.fields.values:
                return Multiple(left, names)
        return Multiple(factor)

    def _left(self, factor: float, names: tuple[str, ...]) -> float:
        return factor / float(torch.stack([self.numbers[name] for name in names]).prod())

    def _is(self, factor: float, wanted: float) -> bool:
        return abs(factor - wanted) <= self.tolerance * abs(wanted)

    def holding(self, number: float) -> str | None:
        """The parameter or buffer that holds a number, if there is one."""
        for name, held in self.numbers.items():
            if "(" not in name and unit(float(held) / number, self.tolerance):
                return name
        return None

    def between(self, before: Value, after: Value) -> Multiple | None:
        """The multiple that leads from one value to another, if there is one."""
        x, y = self.by_channel(before), self.by_channel(after)
        size = (x * x).sum(0)
        if bool((size == 0).any()):
            return None
        factors = (x * y).sum(0) / size
        if (y - factors * x).norm() > self.tolerance * after.size or not bool(factors.any()):
            return None
        return self.of(factors)

    def by_channel(self, value: Value) -> Tensor:
        """A value as rows of channels, in double precision.

        Shapes: `[rows, d_model]`.
        """
        return value.flat.unflatten(0, (-1, self.channels))

    def _choices(self, held: dict[str, Tensor]) -> Iterator[tuple[str, ...]]:
        """One of the tensors whose value is not zero, or two."""
        usable = [name for name, one in held.items() if bool(one.any())]
        for count in (1, 2):
            yield from combinations(usable, count)

    def _same(self, a: Tensor, b: Tensor) -> bool:
        return bool((a - b).norm() <= max(10 * self.tolerance, 1e-4) * b.norm())

    def _fitted(self, a: Tensor, b: Tensor) -> float | None:
        return fitted_scale(a, b, max(10 * self.tolerance, 1e-4))
