"""The MLP or mixture of experts of one layer: its projections, router and experts."""

from dataclasses import replace
from typing import Any

from torch import nn

from lensbridge.native.linear import Linear
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import FeedForward, MLPPart, MoEPart, OpaquePart, Role, Writer
from lensbridge.native.resolve.experts import ExpertResolver
from lensbridge.native.resolve.finder import Finder
from lensbridge.spec import MLP, FusedGatedMLP, GatedMLP, MoE, Opaque
from lensbridge.tensors import layouts


class FeedForwardResolver:
    """The MLPs and mixtures of one stack."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def part(
        self,
        layer: nn.Module,
        spec: MLP | GatedMLP | FusedGatedMLP | MoE | Opaque,
        writer: Writer,
        post_norm: Norm | None,
        where: str,
        index: int,
    ) -> FeedForward:
        """An MLP, a mixture of experts, or a module that is not described inside."""
        if isinstance(spec, Opaque):
            return OpaquePart(self.finder.find(layer, spec.path, where), spec.path, writer)
        if isinstance(spec, MoE):
            return self._moe(layer, spec, writer, post_norm, where)
        return self._mlp(layer, spec, writer, post_norm, where, index)

    def _linear(self, module: nn.Module, path: str, where: str) -> Linear:
        return self.finder.linear(self.finder.find(module, path, f"{where} MLP"), path)

    def _mlp(
        self,
        parent: nn.Module,
        spec: MLP | GatedMLP | FusedGatedMLP,
        writer: Writer,
        post_norm: Norm | None,
        where: str,
        index: int | None = None,
    ) -> MLPPart:
        module = self.finder.find(parent, spec.path, where)
        down = self._linear(module, spec.down, where)
        up, gate = self._up_and_gate(module, spec, where)
        self.finder.expect(where, spec.down, "input", down.n_in, up.d)
        inner, sparsity = None, None
        if isinstance(spec, GatedMLP):
            inner, sparsity = spec.inner_norm, spec.sparsity
        return MLPPart(
            module=module,
            path=spec.path,
            act=self._activation(spec.act),
            up=up,
            gate=gate,
            down=down,
            writer=writer,
            post_norm=post_norm,
            inner_norm=None if inner is None else self.finder.find(module, inner, f"{where} MLP"),
            overwritten=isinstance(spec, MLP | GatedMLP) and spec.overwritten,
            sparsity=0.0 if sparsity is None else self.finder.scale(sparsity, index),
            **(self._channel_mixing(module, spec, where) if isinstance(spec, MLP) else {}),
        )

    def _up_and_gate(
        self, module: nn.Module, spec: MLP | GatedMLP | FusedGatedMLP, where: str
    ) -> tuple[Role, Role | None]:
        """The parts of the projections into an MLP."""
        if isinstance(spec, FusedGatedMLP):
            return self._halves(self._linear(module, spec.gate_up, where), spec)
        up = _whole(self._linear(module, spec.up, where))
        if isinstance(spec, MLP):
            return up, None
        scale = self.finder.scale(spec.gate_scale)
        return up, replace(_whole(self._linear(module, spec.gate, where)), scale=scale)

    def _halves(self, both: Linear, spec: FusedGatedMLP) -> tuple[Role, Role]:
        """The parts of one projection that gives both."""
        gate_first = spec.halves == "gate_first"
        width, what = both.n_out // 2, "gate up" if gate_first else "up gate"
        up, gate = (layouts.half(first, width, what) for first in (not gate_first, gate_first))
        return Role(both, up, 1, width), Role(both, gate, 1, width)

    def _channel_mixing(self, module: nn.Module, spec: MLP, where: str) -> dict[str, Any]:
        """What RWKV's MLPs have beside two projections."""
        shift, gate = spec.token_shift, spec.out_gate
        return {
            "token_shift": None if shift is None else self.finder.tensor(module, shift, where),
            "out_gate": None if gate is None else self.finder.find(module, gate, f"{where} MLP"),
        }

    def _moe(
        self, layer: nn.Module, spec: MoE, writer: Writer, post_norm: Norm | None, where: str
    ) -> MoEPart:
        module = self.finder.find(layer, spec.path, where)
        router = self.finder.find(module, spec.router, f"{where} MoE")
        resolver = ExpertResolver(self.finder)
        experts = (
            None if spec.experts is None else resolver.experts(module, spec.experts, router, where)
        )
        shared = None
        if spec.shared is not None:
            parent = self.finder.find(module, spec.shared.path, f"{where} MoE")
            shared = self._mlp(module, spec.shared, Writer((parent,), Multiplier()), None, where)
        n_experts = experts.n if experts is not None else resolver.router_width(router, spec.router)
        bias = None if spec.out_bias is None else self.finder.tensor(module, spec.out_bias, where)
        return MoEPart(
            module=module,
            path=spec.path,
            act=self._activation(spec.act),
            router=router,
            n_experts=n_experts,
            n_choices=resolver.choices(router, n_experts),
            experts=experts,
            shared=shared,
            writer=writer,
            post_norm=post_norm,
            out_bias=bias,
            table=None if spec.table is None else self.finder.tensor(module, spec.table, where),
        )

    def _activation(self, act: str) -> str:
        """The activation that a config field names, or that is named itself."""
        return str(self.finder.optional(act) or act)


def _whole(linear: Linear) -> Role:
    return Role(linear, layouts.plain(), 1, linear.n_out)
