"""Experts that transformers stacks in one parameter or a few: the weights of each one."""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.native.holding import Held, held, opaque, proof
from lensbridge.native.linear import fetch
from lensbridge.spec import ExpertInput, ExpertLayout

Portion: TypeAlias = Literal["whole", "first", "second", "even", "odd"]
"""Which output columns of a stacked parameter a weight is: all, a half, or each second one."""


@dataclass(frozen=True)
class Stacked:
    """One weight of all experts: a stacked parameter, or a portion of its output columns.

    Args:
        module: the module that has the parameter.
        name: of the parameter there. Its bias is `<name>_bias`.
        n: the number of experts.
        layout: how the parameter holds them.
        portion: which output columns are this weight.
        writes: whether its input are the neurons, which says which side of `neuron_rows` they are.
        biased: whether there is a bias.
    """

    module: nn.Module
    name: str
    n: int
    layout: ExpertLayout
    portion: Portion = "whole"
    writes: bool = False
    biased: bool = False

    @property
    def held(self) -> Held:
        """How the parameter is held."""
        return held(self.module, self.name)

    @property
    def input_first(self) -> bool:
        """Whether the parameter has the input before the output."""
        return self.layout == "in_out" or (self.layout == "neuron_rows" and self.writes)

    def all_columns(self) -> Tensor:
        """Shapes: `[expert, in, out]`, a view of the parameter, with the other portions."""
        stored = fetch(self.module, self.name)
        if self.layout == "neuron_rows":
            stored = stored.unflatten(0, (self.n, -1))
        stored = stored[: self.n]  # LongCat Flash has rows for choices that are no experts
        return stored if self.input_first else stored.mT

    def weight(self) -> Tensor:
        """Shapes: `[expert, in, out]`, a view of the parameter."""
        return self._portion_of(self.all_columns())

    def bias(self) -> Tensor:
        """Shapes: `[expert, out]`. Zeros where there is none."""
        if self.biased:
            return self._portion_of(fetch(self.module, f"{self.name}_bias"))
        weight = self.weight()
        return weight.new_zeros(self.n, weight.shape[-1])

    def _portion_of(self, whole: Tensor) -> Tensor:
        if self.portion == "whole":
            return whole
        if self.portion in ("even", "odd"):
            return whole[..., 0 if self.portion == "even" else 1 :: 2]
        half = whole.shape[-1] // 2
        return whole.narrow(-1, 0 if self.portion == "first" else half, half)


@dataclass(frozen=True)
class Experts:
    """Stacked experts, and the module that is called with tokens for them.

    Args:
        module: the module that is called.
        up: the linear branch of gated experts; the first weight of others.
        gate: None if the experts are not gated.
        down: the weight that is applied last.
        activation: the module of the activation; None where `module` has the usual methods of
            transformers for it.
        given: how tokens get to the experts.
    """

    module: nn.Module
    up: Stacked
    gate: Stacked | None
    down: Stacked
    activation: nn.Module | None = None
    given: ExpertInput = "chosen"

    @property
    def n(self) -> int:
        """The number of experts."""
        return self.down.n

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self.gate is not None

    @property
    def weights(self) -> dict[str, Stacked]:
        """The weights by the end of their names: in, gate, out."""
        found = {"in": self.up, "gate": self.gate, "out": self.down}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def parameters(self) -> tuple[Stacked, ...]:
        """One weight for each stacked parameter."""
        return tuple({(id(one.module), one.name): one for one in self.weights.values()}.values())

    def held(self, weight: Stacked) -> Held:
        """How one of the weights is held. The first time, a token goes to an expert."""
        found = weight.held
        if found.holding not in ("plain", "offloaded") or self.activation is not None:
            return found
        why = proof.hindrance(self.module, weight.name, self._kind)
        return opaque(f"not used as it is: {why}", "as stored") if why else found

    @property
    def _kind(self) -> proof.Kind:
        names = tuple(f"{one.name}{end}" for one in self.parameters for end in ("", "_bias"))
        return proof.Kind(
            "compute what experts do", names, ("transformers.models.",), self._prove, True
        )

    def _at(self, module: nn.Module) -> "Experts":
        """The same of another module, which has the parameters itself."""
        gate = None if self.gate is None else replace(self.gate, module=module)
        up, down = replace(self.up, module=module), replace(self.down, module=module)
        return replace(self, module=module, up=up, gate=gate, down=down)

    def _prove(self, module: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A token that goes to one expert."""
        here = self._at(module)
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

    @property
    def _gate(self) -> Stacked:
        assert self.gate is not None
        return self.gate

    def w_in(self) -> Tensor:
        """Shapes: `[expert, d_model, d_mlp]`; in gated experts, of the linear branch."""
        return self.up.weight()

    def w_gate(self) -> Tensor:
        """Shapes: `[expert, d_model, d_mlp]`."""
        return self._gate.weight()

    def w_out(self) -> Tensor:
        """Shapes: `[expert, d_mlp, d_model]`"""
        return self.down.weight()

    def b_in(self) -> Tensor:
        """Shapes: `[expert, d_mlp]`. Zeros where there is no bias."""
        return self.up.bias()

    def b_gate(self) -> Tensor:
        """Shapes: `[expert, d_mlp]`."""
        return self._gate.bias()

    def b_out(self) -> Tensor:
        """Shapes: `[expert, d_model]`."""
        return self.down.bias()

    def joined(self, gate: Tensor, linear: Tensor) -> Tensor:
        """Gate and linear branch in one tensor, laid out for the native activation."""
        if self.up.portion == "odd":
            return torch.stack([gate, linear], dim=-1).flatten(-2)
        return torch.cat([gate, linear], dim=-1)

    def activate(self, gate: Tensor, linear: Tensor | None) -> Tensor:
        """The neurons, computed with the module's own activation."""
        module: Any = self.module
        if self.activation is not None:
            neurons: Tensor = self.activation.forward(gate)
            return neurons if linear is None else neurons * linear
        if linear is None:
            return module.act_fn(gate)
        return module._apply_gate(self.joined(gate, linear))
