"""Experts that transformers stacks in three-dimensional parameters: the weights of each one."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.native.holding import Held, held, opaque, proof
from lensbridge.native.linear import fetch


@dataclass(frozen=True)
class Experts:
    """The module that holds the experts and is called with tokens, indices and weights.

    Args:
        module: it has `down_proj` and `gate_up_proj` (or `up_proj`, ungated): `[expert, ·, ·]`.
        n: the number of experts.
        transposed: whether a weight is stored `[expert, in, out]`.
        gated: whether gate and up share a parameter.
        interleaved: whether gate and up alternate in it; otherwise the gate is the first half.
        biased: whether each parameter has a `<parameter>_bias`.
    """

    module: nn.Module
    n: int
    transposed: bool
    gated: bool
    interleaved: bool
    biased: bool

    def held(self, name: str) -> Held:
        """How one of the stacked parameters is held. The first time, a token goes to an expert."""
        found = held(self.module, name)
        if found.holding not in ("plain", "offloaded"):
            return found
        why = proof.hindrance(self.module, name, self._kind)
        return opaque(f"not used as it is: {why}", "as stored") if why else found

    @property
    def _kind(self) -> proof.Kind:
        names = tuple(
            f"{one}{end}" for one in (self.entrance, "down_proj") for end in ("", "_bias")
        )
        return proof.Kind(
            "compute what experts do", names, ("transformers.models.",), self._prove, True
        )

    def _prove(self, module: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A token that goes to one expert."""
        here = replace(self, module=module)
        w_in, w_out, expert = here.w_in(), here.w_out(), self.n - 1
        row = proof.rows_like(w_in, 1, w_in.shape[1])
        linear = row @ w_in[expert] + here.b_in()[expert]
        if self.gated:
            gate = row @ here.w_gate()[expert] + here.b_gate()[expert]
            neurons = here.activate(gate, linear)
        else:
            neurons = here.activate(linear, None)
        wanted = neurons @ w_out[expert] + here.b_out()[expert]
        chosen = torch.tensor([[expert]], device=row.device)
        found = type(module).forward(module, row, chosen, row.new_ones(1, 1))
        return found, wanted, (8 * wanted.abs().amax()).expand_as(wanted)

    def _stacked(self, name: str) -> Tensor:
        """Shapes: `[expert, in, out]`, a view of the parameter."""
        weight = fetch(self.module, name)
        return weight if self.transposed else weight.mT

    def _bias(self, name: str, width: int) -> Tensor:
        if self.biased:
            return fetch(self.module, f"{name}_bias")
        weight = fetch(self.module, name)
        return weight.new_zeros(self.n, width)

    def _half(self, both: Tensor, first: bool) -> Tensor:
        if self.interleaved:
            return both[..., 0 if first else 1 :: 2]
        half = both.shape[-1] // 2
        return both.narrow(-1, 0 if first else half, half)

    @property
    def entrance(self) -> str:
        """The parameter that is applied first."""
        return "gate_up_proj" if self.gated else "up_proj"

    def w_in(self) -> Tensor:
        """Shapes: `[expert, d_model, d_mlp]`; in gated experts, of the linear branch."""
        both = self._stacked(self.entrance)
        return self._half(both, first=False) if self.gated else both

    def w_gate(self) -> Tensor:
        """Shapes: `[expert, d_model, d_mlp]`."""
        return self._half(self._stacked(self.entrance), first=True)

    def w_out(self) -> Tensor:
        """Shapes: `[expert, d_mlp, d_model]`."""
        return self._stacked("down_proj")

    def b_in(self) -> Tensor:
        """Shapes: `[expert, d_mlp]`. Zeros where there is no bias."""
        both = self._bias(self.entrance, self._stacked(self.entrance).shape[-1])
        return self._half(both, first=False) if self.gated else both

    def b_gate(self) -> Tensor:
        """Shapes: `[expert, d_mlp]`."""
        both = self._bias(self.entrance, self._stacked(self.entrance).shape[-1])
        return self._half(both, first=True)

    def b_out(self) -> Tensor:
        """Shapes: `[expert, d_model]`."""
        return self._bias("down_proj", self._stacked("down_proj").shape[-1])

    def joined(self, gate: Tensor, linear: Tensor) -> Tensor:
        """Gate and linear branch in one tensor, laid out for the native activation."""
        if self.interleaved:
            return torch.stack([gate, linear], dim=-1).flatten(-2)
        return torch.cat([gate, linear], dim=-1)

    def activate(self, gate: Tensor, linear: Tensor | None) -> Tensor:
        """The neurons, computed with the module's own activation."""
        module: Any = self.module
        if linear is None:
            return module.act_fn(gate)
        return module._apply_gate(self.joined(gate, linear))
