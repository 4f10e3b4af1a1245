"""A norm of the model taken apart: divisor, normalized value, gain and bias."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensbridge.errors import UnsupportedError
from lensbridge.native.fsdp import shard_of
from lensbridge.native.holding import PLAIN, Held, held, opaque, place_of, proof
from lensbridge.native.linear import fetch
from lensbridge.spec import NormKind

_GAINS = ("weight", "w", "gain", "gamma", "g")
_BIASES = ("bias", "b", "beta")
_KNOWN = (
    "torch.nn.modules.normalization.LayerNorm.",
    "torch.nn.modules.normalization.RMSNorm.",
)


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
        inner: the module inside it that normalizes and has the gain, if it is not `module` itself.
        gate: the module with the sigmoid of whose output the inner norm's output is multiplied.
    """

    module: nn.Module
    kind: NormKind
    eps: float
    width: int
    unit_offset: bool = False
    gain_name: str = "weight"
    bias_name: str = "bias"
    inner: nn.Module | None = None
    gate: nn.Module | None = None

    @property
    def holder(self) -> nn.Module:
        """The module that normalizes and has the gain."""
        return self.module if self.inner is None else self.inner

    def gated(self, affine: Tensor) -> Tensor:
        """The module's output for that of the norm inside it; the same where nothing gates it."""
        if self.gate is None:
            return affine
        return (affine * self.gate.forward(affine).float().sigmoid()).to(affine.dtype)

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

    @property
    def held(self) -> Held:
        """How the gain is held. The first time, a row goes through the module."""
        if self.holder._parameters.get(self.gain_name) is None:
            return PLAIN  # there is none, and it reads as ones
        found = held(self.holder, self.gain_name)
        if found.holding not in ("plain", "offloaded"):
            return found
        tensors = (self.gain_name, self.bias_name)
        kind = proof.Kind("compute the norm that it is described as", tensors, _KNOWN, self._prove)
        why = proof.hindrance(self.holder, self.gain_name, kind)
        return opaque(f"not used as it is: {why}", "as stored") if why else found

    def _prove(self, module: nn.Module, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = proof.rows_like(gain, 2, gain.shape[-1])
        here = replace(self, module=module, inner=None, gate=None)
        wanted = here.affine(here.normalize(rows))
        size = 4 * wanted.abs().amax(-1, keepdim=True).expand_as(wanted)
        found = type(module).forward(module, rows)
        if found.dtype == torch.float64:  # many norms compute in float32 whatever they are given
            found, wanted = found.float(), wanted.float()
        return found, wanted, size

    def gain(self) -> Tensor:
        """Shapes: `[d_model]`. Ones where the module has none; with an offset, a copy."""
        if self.holder._parameters.get(self.gain_name) is None:
            return self._constant(1.0)
        weight = fetch(self.holder, self.gain_name)
        return 1.0 + weight if self.unit_offset else weight

    def bias(self) -> Tensor:
        """Shapes: `[d_model]`. Zeros where the module has none."""
        if self.holder._parameters.get(self.bias_name) is None:
            return self._constant(0.0)
        return fetch(self.holder, self.bias_name)

    def _constant(self, value: float) -> Tensor:
        held = shard_of(self.holder, self.gain_name)
        held = self.holder._parameters.get(self.gain_name) if held is None else held
        like: Tensor = torch.empty(self.width) if held is None else held
        place = place_of(self.holder, like)
        return torch.full(like.shape, value, dtype=like.dtype, device=place)

    def affine(self, normalized: Tensor) -> Tensor:
        """Gain and bias applied to a normalized value."""
        scaled = normalized
        if self.holder._parameters.get(self.gain_name) is not None:
            gain = self.gain().to(normalized.device)
            scaled = (gain * normalized).to(normalized.dtype)
        if self.holder._parameters.get(self.bias_name) is None:
            return scaled
        return scaled + self.bias().to(normalized.device)

    def fixed_gain(self) -> Tensor:
        """The gain, where it alone multiplies the normalized value.

        Shapes: `[d_model]`

        Raises:
            UnsupportedError: a gate multiplies it too, by numbers that depend on the input.
        """
        if self.gate is not None:
            raise UnsupportedError(
                f"{type(self.module).__name__} multiplies its norm's output by a gate that reads "
                "it, so it is not linear in the stream even if its divisor is fixed. Leave the "
                "norm out (apply_ln=False), or patch instead."
            )
        return self.gain()

    def linear(self, x: Tensor, scale: Tensor) -> Tensor:
        """What one summand of the norm's input becomes: centered, divided, times the gain.

        The results for all summands, plus the bias, add up to the norm's output.

        Shapes: `[..., d_model]` and the whole input's divisor -> `[..., d_model]`.
        """
        return self.centered(x) / scale * self.fixed_gain().to(x.device)
