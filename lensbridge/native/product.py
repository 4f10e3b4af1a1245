"""Parameters that a module multiplies by itself, as projections that can be listened to.

XLNet's attention has no module for its projections: it holds parameters `[d_model, head, d_head]`
and calls `einsum`. A `Product` stands for one of them. It is no part of the model. While the
products of a module are watched (`sites/products.py`), its `einsum` is computed in the product's
`forward`, from the same tensors, so hooks on the product see what is read and what is written.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Product(nn.Module):
    """One parameter of a module as a projection, heads side by side in one axis.

    Args:
        holder: the module that has the parameter.
        name: of the parameter.

    Attributes:
        writes: whether the heads are what goes in: it is the output projection.
    """

    holder: nn.Module

    def __init__(self, holder: nn.Module, name: str) -> None:
        super().__init__()
        object.__setattr__(self, "holder", holder)  # no module of this one
        self.name = name
        self.writes = False

    def extra_repr(self) -> str:
        """Which parameter it is."""
        return f"{self.name}: {self.in_features} -> {self.out_features}"

    @property
    def parameter(self) -> Tensor:
        """The parameter. Shapes: `[d_model, head, d_head]`."""
        held = self.holder._parameters[self.name]
        assert held is not None
        return held

    @property
    def in_features(self) -> int:
        """The width of what it reads."""
        width, heads, size = self.parameter.shape
        return heads * size if self.writes else width

    @property
    def out_features(self) -> int:
        """The width of what it makes."""
        width, heads, size = self.parameter.shape
        return width if self.writes else heads * size

    def parameters(self, recurse: bool = True) -> Any:
        """The parameter, which belongs to the holder."""
        yield self.parameter

    def forward(self, x: Tensor, equation: str | None = None) -> Tensor:
        """The product, by the module's own equation where it is told.

        Shapes: `[..., d_model]` -> `[..., heads * d_head]`, or back if it `writes`.
        """
        weight = self.parameter
        if not self.writes:
            return torch.einsum(equation or "...m,mhd->...hd", x, weight).flatten(-2)
        heads = x.unflatten(-1, tuple(weight.shape[1:]))
        return torch.einsum(equation or "...hd,mhd->...m", heads, weight)

    def in_place_of(self, equation: str, x: Tensor) -> Tensor:
        """What the module's `einsum` gives, computed here."""
        if self.writes:
            found: Tensor = self(x.flatten(-2), equation)
            return found
        made: Tensor = self(x, equation)
        return made.unflatten(-1, tuple(self.parameter.shape[1:]))
