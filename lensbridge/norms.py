"""A norm of the model taken apart: divisor, normalized value, gain and bias."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensbridge.spec import NormKind
from lensbridge.weights import execution_device, fetch


@dataclass(frozen=True)
class Norm:
    """One norm module and what it computes.

    Args:
        module: the native module.
        kind: LayerNorm or RMSNorm.
        eps: added under the root.
    """

    module: nn.Module
    kind: NormKind
    eps: float

    def centered(self, x: Tensor) -> Tensor:
        """The input less its mean (LayerNorm) or as it is (RMSNorm), in at least float32."""
        wide = x if x.dtype == torch.float64 and self.kind == "LN" else x.float()
        return wide - wide.mean(-1, keepdim=True) if self.kind == "LN" else wide

    def scale(self, x: Tensor) -> Tensor:
        """The divisor.

        Shapes: `[..., m]` -> `[..., 1]`, in at least float32.
        """
        return (self.centered(x).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def divide(self, x: Tensor, scale: Tensor) -> Tensor:
        """The normalized value for a given divisor."""
        return (self.centered(x) / scale).to(x.dtype)

    def normalize(self, x: Tensor) -> Tensor:
        """The normalized value, by the same operations as the native module."""
        if self.kind == "LN":
            return F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    def gain(self) -> Tensor:
        """Shapes: `[m]`. Ones where the module has none."""
        return self._parameter("weight", 1.0)

    def bias(self) -> Tensor:
        """Shapes: `[m]`. Zeros where the module has none."""
        return self._parameter("bias", 0.0)

    def _parameter(self, name: str, missing: float) -> Tensor:
        if self.module._parameters.get(name) is not None:
            return fetch(self.module, name)
        like = self.module._parameters["weight"]
        assert like is not None
        device = execution_device(self.module) or like.device
        return torch.full(like.shape, missing, dtype=like.dtype, device=device)

    def affine(self, normalized: Tensor) -> Tensor:
        """Gain and bias applied to a normalized value."""
        scaled = self.gain().to(normalized.device) * normalized
        if self.module._parameters.get("bias") is None:
            return scaled
        return scaled + self.bias().to(normalized.device)
