"""Points that the native model does not have: values computed from native tensors.

Each has an owner, the native module that is edited in its place. When no callback changed the
value, the owner's output stays the same bit for bit. When one did, or when gradients go through the
value, the output is recomputed from it.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from einops import einsum
from torch import Tensor, nn

from lensbridge.errors import EditError, HookError
from lensbridge.native.linear import Linear, fetch
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.pieces import Pieces
from lensbridge.sites.leaves import first_tensor
from lensbridge.sites.site import Call, Chain, Site, Stage
from lensbridge.tensors.layouts import Layout

Change: TypeAlias = Literal["none", "connected", "changed"]


def change(read: Tensor, new: Tensor | None) -> Change:
    """What a chain did to a derived value, which decides whether its owner is recomputed.

    "connected": the same numbers, with a graph of their own: gradients flow through the new value,
    and stop there where it has none.
    """
    if new is None:
        return "none"
    if not torch.equal(new.detach(), read.detach()):
        return "changed"
    in_graph = torch.is_grad_enabled() and (new.requires_grad or read.requires_grad)
    return "connected" if in_graph else "none"


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

        return [Stage(norm.holder, "output", 0, act)]


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

        return [Stage(norm.holder, "output", 1, act)]


@dataclass(frozen=True)
class ResultSite(Site):
    """What each head writes to the stream: its share of the output projection's input times its
    slice of W_O, through the norm and the multiplier after attention.

    After an edit, attention adds the sum of the edited writes, plus b_O through the same norm.
    """

    out: Linear
    layout: Layout
    n_heads: int
    post_norm: Norm | None
    scale: Multiplier

    def _stages(self) -> list[Stage]:
        if self.post_norm is None:
            return [Stage(self.out.module, "output", 0, self._at_projection)]

        def keep(call: Call, chain: Chain) -> None:
            call.memory[self.name] = call.input

        return [
            Stage(self.out.module, "output", 90, keep),
            Stage(self.post_norm.module, "output", -1, self._at_norm),
        ]

    def _writes(self, whole: Tensor) -> Tensor:
        heads = self.layout.split(whole)
        weight = self.out.weight().unflatten(0, (self.n_heads, -1)).to(heads.device)
        return einsum(heads, weight, "... h d, h d m -> ... h m")

    def _at_projection(self, call: Call, chain: Chain) -> None:
        bias = self.out.bias().to(call.input.device)
        scale = self.scale.value(call.input)
        self._show(call, chain, self._writes(call.input) * scale, bias)

    def _at_norm(self, call: Call, chain: Chain) -> None:
        norm = self.post_norm
        if norm is None or self.name not in call.memory:
            raise HookError(
                f"{self.name}: the norm after attention (norms.post_attn or post_cross) ran before "
                "attention's output projection, so it is not the norm of its output."
            )
        whole = call.memory.pop(self.name)
        scale, bias = norm.scale(call.input), self.out.bias().to(whole.device)
        writes = norm.linear(self._writes(whole), scale.unsqueeze(-2)) * self.scale.value(whole)
        rest = norm.linear(bias, scale) + norm.bias().to(whole.device)
        self._show(call, chain, writes.to(whole.dtype), rest.to(whole.dtype))

    def _show(self, call: Call, chain: Chain, result: Tensor, rest: Tensor) -> None:
        new = chain.run(result)
        how = change(result, new)
        if how != "none":
            assert new is not None
            written = new.sum(-2) / self.scale.value(new) + rest
            call.replace_result(substitute(call.result, written, how))


@dataclass(frozen=True)
class SumSite(Site):
    """The sum of the outputs of one or more modules, times a multiplier, plus a bias.

    An edit is divided by the multiplier again, and the last module's output takes the difference.
    """

    modules: tuple[nn.Module, ...]
    scale: Multiplier
    layout: Layout
    bias: tuple[nn.Module, str] | None = None

    def _stages(self) -> list[Stage]:
        def keep(call: Call, chain: Chain) -> None:
            call.memory[self.name, call.module] = call.result

        def act(call: Call, chain: Chain) -> None:
            others = [call.memory[self.name, module] for module in self.modules[:-1]]
            beside = sum(other.view(call.result.shape) for other in others)
            scale = self.scale.value(call.result)
            whole = self.layout.split(beside + call.result) * scale
            bias = self._bias_of(whole)
            read = whole + bias
            new = chain.run(read)
            how = change(read, new)
            if how != "none":
                assert new is not None
                written = self.layout.merge(call.result, (new - bias) / scale) - beside
                call.replace_result(substitute(call.result, written, how))

        first = [Stage(module, "output", 3, keep) for module in self.modules[:-1]]
        return [*first, Stage(self.modules[-1], "output", 3, act)]

    def _bias_of(self, whole: Tensor) -> Tensor | float:
        """The bias with the last axes of the value: of heads, or of channels."""
        if self.bias is None:
            return 0.0
        bias = fetch(*self.bias).to(whole.device)
        return bias.view(whole.shape[-2:]) if len(bias) != whole.shape[-1] else bias


@dataclass(frozen=True)
class ClippedSite(Site):
    """A projection's output after it was clipped, through a layout.

    The captured value is a copy, because some models clip in place. The model clips an edit too, so
    an edit beyond the bound is refused.
    """

    module: nn.Module
    layout: Layout
    bound: float

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            whole = call.result
            read = self.layout.split(whole).clamp(-self.bound, self.bound)
            new = chain.run(read)
            how = change(read, new)
            if how == "none":
                return
            assert new is not None
            if bool((new.abs() > self.bound).any()):
                raise EditError(
                    f"{self.name}: the model clips this to {self.bound:g}, and the edit goes to "
                    f"{float(new.detach().abs().max()):g}. Stay within, or edit a later point."
                )
            # a copy: a hook may return a leaf of autograd, which the model could not clip in place
            call.replace_result(self.layout.merge(whole, new).clone())

        return [Stage(self.module, "output", 2, act)]


@dataclass(frozen=True)
class LatentSite(Site):
    """Keys or values of latent attention, at the positions of this pass.

    Keys are those before rotary: for each head the part made from the latent, then the rotary part,
    which all heads share (`d_shared` wide; values have none). An edit is written to the projection
    that made the head's own part. The shared part cannot be changed for one head, so an edit of it
    is refused. The native key/value cache keeps latents, so later passes do not see an edit.
    """

    down: nn.Module
    up: nn.Module
    layout: Layout
    n_heads: int
    d_shared: int

    def _stages(self) -> list[Stage]:
        def keep(call: Call, chain: Chain) -> None:
            call.memory[self.name] = call.result

        def act(call: Call, chain: Chain) -> None:
            whole, given = call.result, call.memory.pop(self.name)
            rows = whole.reshape(given.shape[0], -1, whole.shape[-1])  # latents may be a "head"
            now = rows[:, -given.shape[1] :]
            own = self.layout.split(now)
            shared = given[..., given.shape[-1] - self.d_shared :].unsqueeze(-2)
            shared = shared.expand(*own.shape[:-1], -1)
            read = torch.cat([own, shared], dim=-1) if self.d_shared else own
            new = chain.run(read)
            if new is None:
                return
            width = own.shape[-1]
            if not torch.equal(new[..., width:], shared):
                raise EditError(
                    f"{self.name}: the last {self.d_shared} dimensions are one key that all heads "
                    "share, so they cannot be edited here. Leave them as they are, or edit "
                    "attn.hook_rot_k where the model has it."
                )
            edited = self.layout.merge(now, new[..., :width])
            before = rows[:, : -given.shape[1]]
            call.replace_result(torch.cat([before, edited], dim=1).view(whole.shape))

        return [Stage(self.down, "output", 9, keep), Stage(self.up, "output", 2, act)]


@dataclass(frozen=True)
class HeadInputSite(Site):
    """The residual stream as each head reads it, before the norm: one copy per head.

    An edited copy goes through the native norm (if there is one) and projection, and that head's
    share of the result is kept.
    """

    norm: nn.Module | None
    projection: nn.Module
    layout: Layout
    n_heads: int
    in_scale: float
    pieces: Pieces | None = None
    """Set where each rank projects to some of the heads."""

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
                beside = call.args[1:]  # a projection may add positions to its input
                heads = [self._head(i, copies, new, native, beside) for i in range(self.n_heads)]
                call.replace_result(self.layout.merge(call.result, torch.stack(heads, dim=-2)))

        return [
            Stage(self.norm or self.projection, "input", 2, read),
            Stage(self.projection, "output", -1, write),
        ]

    def _head(
        self, i: int, copies: Tensor, new: Tensor, native: Tensor, beside: tuple[Any, ...]
    ) -> Tensor:
        how = change(copies[..., i, :], new[..., i, :])
        if how == "none":
            return native[..., i, :]
        normed = new[..., i, :] if self.norm is None else self.norm.forward(new[..., i, :])
        projected = first_tensor(self.projection.forward(normed * self.in_scale, *beside))
        assert projected is not None
        if self.pieces is not None:
            projected = self.pieces.whole(projected)
        return substitute(native[..., i, :], self.layout.split(projected)[..., i, :], how)
