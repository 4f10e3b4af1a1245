"""Points that do not exist natively: read from native tensors, and edited through their owner.

When nobody changed the value, the owner's native output stays as it is, bit for bit; when somebody
did, or wants gradients through it, the output is recomputed from it.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from einops import einsum
from torch import Tensor, nn

from lensbridge.layouts import Layout
from lensbridge.norms import Norm
from lensbridge.sites import Call, Chain, Site, Stage
from lensbridge.weights import Linear

Change: TypeAlias = Literal["none", "connected", "changed"]


def change(read: Tensor, new: Tensor | None) -> Change:
    """What a chain did to a derived value, which decides whether its owner is recomputed.

    "connected": the same numbers, but gradients are to flow through them.
    """
    if new is None:
        return "none"
    if not torch.equal(new.detach(), read.detach()):
        return "changed"
    return "connected" if new.requires_grad and torch.is_grad_enabled() else "none"


def substitute(native: Tensor, recomputed: Tensor, how: Change) -> Tensor:
    """The recomputed tensor; where nothing changed, with the native numbers bit for bit."""
    if how == "changed":
        return recomputed
    return native.detach() + (recomputed - recomputed.detach())


@dataclass(frozen=True)
class NormScaleSite(Site):
    """A norm's divisor. An edit divides by the edited value instead."""

    norm: Norm

    def _stages(self) -> list[Stage]:
        norm = self.norm

        def act(call: Call, chain: Chain) -> None:
            x = call.input
            scale = norm.scale(x)
            new = chain.run(scale)
            how = change(scale, new)
            if how != "none":
                assert new is not None
                normalized = norm.divide(x, new)
                call.notes["normalized"] = normalized
                call.replace_result(substitute(call.result, norm.affine(normalized), how))

        return [Stage(norm.module, "output", 0, act)]


@dataclass(frozen=True)
class NormalizedSite(Site):
    """A norm's output before gain and bias. An edit applies gain and bias to the edited value."""

    norm: Norm

    def _stages(self) -> list[Stage]:
        norm = self.norm

        def act(call: Call, chain: Chain) -> None:
            normalized = call.notes.get("normalized")
            if normalized is None:
                normalized = norm.normalize(call.input)
            new = chain.run(normalized)
            how = change(normalized, new)
            if how != "none":
                assert new is not None
                call.replace_result(substitute(call.result, norm.affine(new), how))

        return [Stage(norm.module, "output", 1, act)]


@dataclass(frozen=True)
class ResultSite(Site):
    """What each head writes to the stream: z times its slice of W_O.

    An edit makes the projection's output the sum of the edited writes plus b_O.
    """

    out: Linear
    layout: Layout
    n_heads: int

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            z = self.layout.split(call.input)
            weight = self.out.weight().unflatten(0, (self.n_heads, -1)).to(z.device)
            result = einsum(z, weight, "... h d, h d m -> ... h m")
            new = chain.run(result)
            how = change(result, new)
            if how != "none":
                assert new is not None
                written = new.sum(-2) + self.out.bias().to(z.device)
                call.replace_result(substitute(call.result, written, how))

        return [Stage(self.out.module, "output", 0, act)]


@dataclass(frozen=True)
class HeadInputSite(Site):
    """The residual stream as each head reads it, before the norm: one copy per head.

    An edit sends the edited copy through the native norm and projection and keeps that head's
    share of the outcome.
    """

    norm: nn.Module
    projection: nn.Module
    layout: Layout
    n_heads: int

    def _stages(self) -> list[Stage]:
        key = f"{self.name} edited"

        def read(call: Call, chain: Chain) -> None:
            stream = call.input
            copies = stream.unsqueeze(-2).expand(*stream.shape[:-1], self.n_heads, -1)
            new = chain.run(copies)
            how = change(copies, new)
            if how != "none":
                call.memory[key] = (copies, new)

        def write(call: Call, chain: Chain) -> None:
            if key in call.memory:
                copies, new = call.memory.pop(key)
                native = self.layout.split(call.result)
                heads = [self._head(i, copies, new, native) for i in range(self.n_heads)]
                call.replace_result(self.layout.merge(call.result, torch.stack(heads, dim=-2)))

        return [
            Stage(self.norm, "input", 2, read),
            Stage(self.projection, "output", -1, write),
        ]

    def _head(self, i: int, copies: Tensor, new: Tensor, native: Tensor) -> Tensor:
        how = change(copies[..., i, :], new[..., i, :])
        if how == "none":
            return native[..., i, :]
        projected = self.projection.forward(self.norm.forward(new[..., i, :]))
        return substitute(native[..., i, :], self.layout.split(projected)[..., i, :], how)
