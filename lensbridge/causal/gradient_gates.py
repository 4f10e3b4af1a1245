"""GradientGates: layers whose branches a backward pass can leave out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lensbridge.cache.residual.terms import Term, residual_terms
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback, Hook


@dataclass
class GradientGates:
    """Hooks that can set the gradient of what one layer adds to the stream to zero.

    Args:
        written: prefix of each layer -> the points with what it adds.
        closed: the layer whose gradient is set to zero, or None.
    """

    written: Mapping[str, Sequence[str]]
    closed: str | None = field(default=None, init=False)

    @classmethod
    def of(cls, model: HookedModel) -> "GradientGates":
        """A gate at every layer whose branches are described.

        Raises:
            InputError: a layer of the main stack is not described, or there is only one layer.
        """
        native = model.native
        if any(block.residual is None for block in native.blocks):
            raise InputError(
                "grad_drop leaves out what one layer adds to the stream, and the inside of this "
                "model's layers is not described."
            )
        written: dict[str, list[str]] = {}
        for stack in native.stacks:
            for step in residual_terms(stack, lambda name: name in model.vocabulary.index):
                if isinstance(step, Term) and step.is_point:
                    layer = f"{stack.prefix}.{step.layer}."
                    written.setdefault(layer, []).append(step.point)
        if len(written) < 2:
            raise InputError("grad_drop leaves out one layer at a time, and this model has one.")
        return cls(written)

    @cached_property
    def callbacks(self) -> list[Callback]:
        """The hooks for the forward pass."""
        return [
            Callback(point, "grad", self._gate(layer), point, required=False)
            for layer, points in self.written.items()
            for point in points
        ]

    @property
    def passed(self) -> list[str]:
        """The layers that the forward pass went through."""
        fired = {one.name for one in self.callbacks if one.fired}
        return [layer for layer, points in self.written.items() if fired & set(points)]

    @contextmanager
    def closing(self, layer: str | None) -> Iterator[None]:
        """Leave out a layer (or none) in the backward passes inside."""
        self.closed = layer
        try:
            yield
        finally:
            self.closed = None

    def _gate(self, layer: str) -> Callable[[Tensor, Hook], Tensor]:
        def meet(grad: Tensor, hook: Hook) -> Tensor:
            return torch.zeros_like(grad) if self.closed == layer else grad

        return meet
