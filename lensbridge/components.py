"""The model's parts under the field's names: `model.blocks[5].attn.W_Q`, `model.ln_final.w`.

Everything here reads the native modules when it is asked; nothing is stored. A weight of one layer
is a view of the native parameter where its layout allows, so writing to it (under `torch.no_grad`)
edits the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import overload

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.layouts import per_head_in, per_head_out, repeat_kv
from lensbridge.norms import Norm
from lensbridge.parts import AttentionPart, BlockPart, MLPPart, Native, Role
from lensbridge.weights import Linear, State, fetch


@dataclass(frozen=True)
class NormView:
    """A norm: `w` its gain, `b` its bias. Calling it runs the native module."""

    norm: Norm

    @property
    def w(self) -> Tensor:
        """Shapes: `[d_model]`"""
        return self.norm.gain()

    @property
    def b(self) -> Tensor:
        """Shapes: `[d_model]`. Zeros where there is no bias."""
        return self.norm.bias()

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[..., d_model]` -> `[..., d_model]`"""
        return self.norm.module(x)


@dataclass(frozen=True)
class AttentionView:
    """Attention of one layer."""

    part: AttentionPart

    @property
    def W_Q(self) -> Tensor:
        """Shapes: `[head, d_model, d_head]`"""
        return _weight(self.part.q)

    @property
    def W_K(self) -> Tensor:
        """Shapes: `[kv_head, d_model, d_head]`, as stored."""
        return _weight(self.part.k)

    @property
    def W_V(self) -> Tensor:
        """Shapes: `[kv_head, d_model, d_head]`, as stored."""
        return _weight(self.part.v)

    @property
    def W_O(self) -> Tensor:
        """Shapes: `[head, d_head, d_model]`"""
        return per_head_out(self.part.out.weight(), self.part.q.n)

    @property
    def W_K_expanded(self) -> Tensor:
        """Shapes: `[head, d_model, d_head]`: one for each query head (a copy if they share)."""
        return repeat_kv(self.W_K, self.part.q.n, axis=0)

    @property
    def W_V_expanded(self) -> Tensor:
        """Shapes: `[head, d_model, d_head]`: one for each query head (a copy if they share)."""
        return repeat_kv(self.W_V, self.part.q.n, axis=0)

    @property
    def b_Q(self) -> Tensor:
        """Shapes: `[head, d_head]`. Zeros where there is no bias, as in every `b_*`."""
        return _bias(self.part.q)

    @property
    def b_K(self) -> Tensor:
        """Shapes: `[kv_head, d_head]`"""
        return _bias(self.part.k)

    @property
    def b_V(self) -> Tensor:
        """Shapes: `[kv_head, d_head]`"""
        return _bias(self.part.v)

    @property
    def b_O(self) -> Tensor:
        """Shapes: `[d_model]`"""
        return self.part.out.bias()


@dataclass(frozen=True)
class MLPView:
    """MLP of one layer. Calling it runs the native module on what its norm gives."""

    part: MLPPart

    @property
    def W_in(self) -> Tensor:
        """Shapes: `[d_model, d_mlp]`. The linear branch of a gated MLP."""
        return self.part.up.weight()

    @property
    def W_gate(self) -> Tensor:
        """Shapes: `[d_model, d_mlp]`. Only a gated MLP has one."""
        return self._gate().weight()

    @property
    def W_out(self) -> Tensor:
        """Shapes: `[d_mlp, d_model]`"""
        return self.part.down.weight()

    @property
    def b_in(self) -> Tensor:
        """Shapes: `[d_mlp]`. Zeros where there is no bias, as in every `b_*`."""
        return self.part.up.bias()

    @property
    def b_gate(self) -> Tensor:
        """Shapes: `[d_mlp]`. Only a gated MLP has one."""
        return self._gate().bias()

    @property
    def b_out(self) -> Tensor:
        """Shapes: `[d_model]`"""
        return self.part.down.bias()

    def _gate(self) -> Linear:
        if self.part.gate is None:
            raise WeightError("This model's MLP is not gated, so it has no W_gate or b_gate.")
        return self.part.gate

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[batch, pos, d_model]` (after the norm) -> `[batch, pos, d_model]`"""
        out = self.part.module(x)
        return out if isinstance(out, Tensor) else out[0]


@dataclass(frozen=True)
class BlockView:
    """One layer. Calling it runs that layer alone on a residual stream."""

    part: BlockPart
    run: Callable[[Tensor], Tensor]

    @property
    def attn(self) -> AttentionView:
        """Attention."""
        return AttentionView(self.part.attn)

    @property
    def mlp(self) -> MLPView:
        """MLP."""
        return MLPView(self.part.mlp)

    @property
    def ln1(self) -> NormView:
        """Attention's input norm."""
        return self._norm("ln1", self.part.ln1)

    @property
    def ln2(self) -> NormView:
        """MLP's input norm."""
        return self._norm("ln2", self.part.ln2)

    @property
    def ln1_post(self) -> NormView:
        """Norm behind attention."""
        return self._norm("ln1_post", self.part.ln1_post)

    @property
    def ln2_post(self) -> NormView:
        """Norm behind the MLP."""
        return self._norm("ln2_post", self.part.ln2_post)

    def _norm(self, slot: str, norm: Norm | None) -> NormView:
        if norm is None:
            raise WeightError(f"{type(self.part.module).__name__} has no {slot}.")
        return NormView(norm)

    def __call__(self, resid: Tensor) -> Tensor:
        """Shapes: `[batch, pos, d_model]` -> `[batch, pos, d_model]`"""
        return self.run(resid)


class BlocksView(Sequence[BlockView]):
    """The layers: `model.blocks[5]`, `model.blocks[-1]`, `len(model.blocks)`."""

    def __init__(self, views: Sequence[BlockView]) -> None:
        self._views = tuple(views)

    @overload
    def __getitem__(self, index: int) -> BlockView: ...

    @overload
    def __getitem__(self, index: slice) -> "BlocksView": ...

    def __getitem__(self, index: int | slice) -> "BlockView | BlocksView":
        if isinstance(index, slice):
            return BlocksView(self._views[index])
        return self._views[index]

    def __len__(self) -> int:
        return len(self._views)


@dataclass(frozen=True)
class EmbedView:
    """An embedding table: `W` its rows. Calling it runs the native module on ids."""

    module: nn.Module

    @property
    def W(self) -> Tensor:
        """Shapes: `[row, d_model]`"""
        return fetch(self.module, "weight")

    @property
    def W_E(self) -> Tensor:
        """Shapes: `[d_vocab, d_model]`"""
        return self.W

    @property
    def W_pos(self) -> Tensor:
        """Shapes: `[n_ctx, d_model]`"""
        return self.W

    def __call__(self, ids: Tensor) -> Tensor:
        """Shapes: `[...]` -> `[..., d_model]`"""
        return self.module(ids)


@dataclass(frozen=True)
class UnembedView:
    """The head: `W_U`, `b_U`. Calling it runs the native module on a normalized residual."""

    linear: Linear

    @property
    def W_U(self) -> Tensor:
        """Shapes: `[d_model, d_vocab]`. A view of the embedding where the two are tied."""
        return self.linear.weight()

    @property
    def b_U(self) -> Tensor:
        """Shapes: `[d_vocab]`. Zeros where there is no bias."""
        return self.linear.bias()

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[batch, pos, d_model]` -> `[batch, pos, d_vocab]`"""
        return self.linear.module(x)


def _weight(role: Role) -> Tensor:
    return per_head_in(role.linear.weight(), role.layout)


def _bias(role: Role) -> Tensor:
    return role.layout.split(role.linear.bias())


ATTENTION_WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
MLP_WEIGHTS = ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")
NORM_SLOTS = ("ln1", "ln1_post", "ln2", "ln2_post")


class Components:
    """Every part of one model, and its weights by name."""

    def __init__(self, native: Native, run_block: Callable[[int, Tensor], Tensor]) -> None:
        self.native = native
        self.blocks = BlocksView(
            [
                BlockView(part, lambda resid, i=i: run_block(i, resid))  # type: ignore[misc]
                for i, part in enumerate(native.blocks)
            ]
        )
        self.ln_final = NormView(native.ln_final)
        self.embed = EmbedView(native.embed)

    @property
    def unembed(self) -> UnembedView:
        """The head.

        Raises:
            WeightError: a bare base model has none.
        """
        if self.native.unembed is None:
            raise WeightError(f"{type(self.native.core).__name__} has no language-model head.")
        return UnembedView(self.native.unembed)

    @property
    def pos_embed(self) -> EmbedView:
        """The learned positions.

        Raises:
            WeightError: positions are not learned.
        """
        if self.native.pos_embed is None:
            raise WeightError("This model has no learned absolute positions, so no W_pos.")
        return EmbedView(self.native.pos_embed)

    @cached_property
    def weights(self) -> dict[str, tuple[Callable[[], Tensor], State]]:
        """Every weight: canonical name -> how to read it, and how it is held."""
        return dict(self._weights())

    def _weights(self) -> Iterator[tuple[str, tuple[Callable[[], Tensor], State]]]:
        yield "embed.W_E", (lambda: self.embed.W, _table_state(self.native.embed))
        if self.native.pos_embed is not None:
            yield "pos_embed.W_pos", (lambda: self.pos_embed.W, _table_state(self.native.pos_embed))
        for i, block in enumerate(self.blocks):
            yield from self._block_weights(f"blocks.{i}.", block)
        yield from _norm_weights("ln_final", self.ln_final)
        if self.native.unembed is not None:
            for name in ("W_U", "b_U"):
                yield f"unembed.{name}", (_reader(self.unembed, name), self.native.unembed.state)

    def _block_weights(
        self, at: str, block: BlockView
    ) -> Iterator[tuple[str, tuple[Callable[[], Tensor], State]]]:
        attn, mlp = block.part.attn, block.part.mlp
        held = {"Q": attn.q.linear, "K": attn.k.linear, "V": attn.v.linear, "O": attn.out}
        for name in ATTENTION_WEIGHTS:
            yield f"{at}attn.{name}", (_reader(block.attn, name), held[name[-1]].state)
        for name in MLP_WEIGHTS:
            linear = {"in": mlp.up, "gate": mlp.gate, "out": mlp.down}[name[2:]]
            if linear is not None:
                yield f"{at}mlp.{name}", (_reader(block.mlp, name), linear.state)
        norms = (block.part.ln1, block.part.ln1_post, block.part.ln2, block.part.ln2_post)
        for slot, norm in zip(NORM_SLOTS, norms, strict=True):
            if norm is not None:
                yield from _norm_weights(f"{at}{slot}", NormView(norm))


def _reader(view: object, name: str) -> Callable[[], Tensor]:
    return partial(attrgetter(name), view)


def _norm_weights(
    at: str, view: NormView
) -> Iterator[tuple[str, tuple[Callable[[], Tensor], State]]]:
    state = _table_state(view.norm.module)
    yield f"{at}.w", (_reader(view, "w"), state)
    yield f"{at}.b", (_reader(view, "b"), state)


def _table_state(module: nn.Module) -> State:
    weight = module._parameters.get("weight")
    return "offloaded" if weight is not None and weight.device == torch.device("meta") else "plain"
