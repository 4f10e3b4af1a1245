"""Points of single heads that no native module has.

They are what each head reads, its keys and values where these are made from a latent, and what it
writes. As for all derived points (`derived.py`), a native module is edited in their place.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn

from lensbridge.errors import EditError, HookError
from lensbridge.native.linear import Linear
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.pieces import Pieces
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.derived import change, substitute
from lensbridge.sites.leaves import first_tensor
from lensbridge.sites.site import Site
from lensbridge.tensors.layouts import Layout


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
