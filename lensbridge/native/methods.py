"""Methods of `LensModel` that a module of torch has too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self


class TorchMethods:
    """The model as a torch object: its dtype, its mode, its parameters and its state."""

    hf_model: nn.Module

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.hf_model.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model in place, as `hf_model.to` does."""
        self.hf_model.to(*args, **kwargs)
        return self

    def eval(self) -> Self:
        """Switch dropout off."""
        self.hf_model.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on."""
        self.hf_model.train(mode)
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters."""
        return self.hf_model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters under their native names."""
        return self.hf_model.named_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the parameters' gradients."""
        self.hf_model.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The model's own state under its native names."""
        return self.hf_model.state_dict()
