"""GradientGates: layers whose branches can be closed to a gradient on its way back."""

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
    """What each layer adds to the stream, let through by a gradient or not.

    Args:
        written: prefix of each layer -> the points with what it adds.
        closed: the layer that is closed, or None.
    """

    written: Mapping[str, Sequence[str]]
    closed: str | None = field(default=None, init=False)

    @classmethod
    def of(cls, model: HookedModel) -> "GradientGates":
        """A gate at every layer, in towers as far as their insides are described.

        Raises:
            InputError: a layer whose branches are not described, or no second layer.
        """
        native = model.native
        if any(block.residual is None for block in native.blocks):
            raise InputError(
                "grad_drop stops gradients at what each layer adds to the stream; the inside of "
                "this model's layers is not described."
            )
        written: dict[str, list[str]] = {}
        for stack in native.stacks:
            for step in residual_terms(stack, lambda name: name in model.vocabulary.index):
                if isinstance(step, Term) and step.is_point:
                    layer = f"{stack.prefix}.{step.layer}."
                    written.setdefault(layer, []).append(step.point)
        if len(written) < 2:
            raise InputError("grad_drop goes back past each layer in turn; this model has one.")
        return cls(written)

    @cached_property
    def callbacks(self) -> list[Callback]:
        """For the pass forward."""
        return [
            Callback(point, "grad", self._gate(layer), point, required=False)
            for layer, points in self.written.items()
            for point in points
        ]

    @property
    def passed(self) -> list[str]:
        """The layers that the pass forward went through."""
        fired = {one.name for one in self.callbacks if one.fired}
        return [layer for layer, points in self.written.items() if fired & set(points)]

    @contextmanager
    def closing(self, layer: str | None) -> Iterator[None]:
        """Close a layer for a while, or none."""
        self.closed = layer
        try:
            yield
        finally:
            self.closed = None

    def _gate(self, layer: str) -> Callable[[Tensor, Hook], Tensor]:
        def meet(grad: Tensor, hook: Hook) -> Tensor:
            return torch.zeros_like(grad) if self.closed == layer else grad

        return meet
