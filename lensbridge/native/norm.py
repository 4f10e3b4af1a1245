"""A norm of the model taken apart: divisor, normalized value, gain and bias."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensbridge.native.holding import execution_device
from lensbridge.native.linear import fetch
from lensbridge.spec import NormKind

_GAINS = ("weight", "w", "gain", "gamma", "g")
_BIASES = ("bias", "b", "beta")


def affine_names(module: nn.Module) -> tuple[str, str]:
    """What a norm calls its gain and its bias: `weight` and `bias`, or as plain modules do."""

    def among(names: tuple[str, ...]) -> str:
        return next((name for name in names if name in module._parameters), names[0])

    return among(_GAINS), among(_BIASES)


@dataclass(frozen=True)
class Norm:
    """One norm module and what it computes.

    Args:
        module: the native module.
        kind: "LN" (LayerNorm) or "RMS" (RMSNorm).
        eps: added under the root.
        width: the width of its input.
        unit_offset: whether the gain is 1 + weight.
        gain_name: what the module calls its gain; so `bias_name`.
    """

    module: nn.Module
    kind: NormKind
    eps: float
    width: int
    unit_offset: bool = False
    gain_name: str = "weight"
    bias_name: str = "bias"

    def centered(self, x: Tensor) -> Tensor:
        """The input minus its mean (LayerNorm) or unchanged (RMSNorm), in at least float32."""
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
        """Shapes: `[d_model]`. Ones where the module has none; with an offset, a copy."""
        if self.module._parameters.get(self.gain_name) is None:
            return self._constant(1.0)
        weight = fetch(self.module, self.gain_name)
        return 1.0 + weight if self.unit_offset else weight

    def bias(self) -> Tensor:
        """Shapes: `[d_model]`. Zeros where the module has none."""
        if self.module._parameters.get(self.bias_name) is None:
            return self._constant(0.0)
        return fetch(self.module, self.bias_name)

    def _constant(self, value: float) -> Tensor:
        like = self.module._parameters.get(self.gain_name)
        if like is None:
            return torch.full((self.width,), value)
        device = execution_device(self.module) or like.device
        return torch.full(like.shape, value, dtype=like.dtype, device=device)

    def affine(self, normalized: Tensor) -> Tensor:
        """Gain and bias applied to a normalized value."""
        scaled = normalized
        if self.module._parameters.get(self.gain_name) is not None:
            gain = self.gain().to(normalized.device)
            scaled = (gain * normalized).to(normalized.dtype)
        if self.module._parameters.get(self.bias_name) is None:
            return scaled
        return scaled + self.bias().to(normalized.device)

    def linear(self, x: Tensor, scale: Tensor) -> Tensor:
        """What one summand of the norm's input becomes: centered, divided, times the gain.

        The results for all summands, plus the bias, add up to the norm's output.

        Shapes: `[..., d_model]` and the whole input's divisor -> `[..., d_model]`.
        """
        return self.centered(x) / scale * self.gain().to(x.device)
