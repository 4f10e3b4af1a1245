"""Weights as parameters: their gradients, and freezing them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError


class ParameterView(Tensor):
    """A weight under its TransformerLens name: a view of one of the model's own parameters.

    Its `grad` is a view of the parameter's, and setting `requires_grad` freezes the parameter.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    native: nn.Parameter

    @property
    def requires_grad(self) -> bool:
        """Whether the parameter gets gradients."""
        return self.native.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.numel() != self.native.numel():
            raise WeightError(
                "This weight is only a part of a parameter of the HuggingFace model, which cannot "
                "be frozen in part: set requires_grad in model.hf_model.named_parameters()."
            )
        self.native.requires_grad = value

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """The gradient, as it is now."""
        return gradient(self, self.native)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Set `requires_grad`."""
        self.requires_grad = requires_grad
        return self


def native_of(weight: Tensor, parameters: Iterable[nn.Parameter]) -> nn.Parameter | None:
    """The parameter that a weight is a view of; None if it is a copy."""
    place = weight.untyped_storage().data_ptr()
    return next((p for p in parameters if p.untyped_storage().data_ptr() == place), None)


def gradient(weight: Tensor, native: nn.Parameter) -> Tensor | None:
    """The view of a parameter's gradient that corresponds to a weight."""
    grad = native.grad
    if grad is None or grad.stride() != native.stride():
        return None
    start = weight.storage_offset() - native.storage_offset() + grad.storage_offset()
    return grad.as_strided(weight.shape, weight.stride(), start)


def with_grad(weight: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """A weight whose `grad` is that of the parameter that it is a view of."""
    native = native_of(weight, parameters)
    grad = None if native is None or native is weight else gradient(weight, native)
    if grad is not None:
        weight.grad = grad
    return weight


def as_parameter(weight: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """A weight that can be frozen, if it is a view of a parameter."""
    native = native_of(weight, parameters)
    if native is None or native is weight:
        return weight
    view = weight.as_subclass(ParameterView)
    view.native = native
    return view
