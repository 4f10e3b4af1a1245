"""The model's parts under the field's names: `model.blocks[5].attn.W_Q`, `model.ln_final.w`.

Every access reads the native modules; nothing is stored. A weight of one layer is a view of the
native parameter where its layout allows, so writing to it (under `torch.no_grad`) edits the model.
Otherwise it is a `WeightCopy`, which raises when it is written to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Union, overload

from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.linear import Linear, fetch
from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    MoEPart,
    NormSlot,
    OpaquePart,
)
from lensbridge.native.table import table_held, table_rows
from lensbridge.weights.attention_view import AttentionView
from lensbridge.weights.mlp_views import FeedForwardView, MLPView, MoEView
from lensbridge.weights.view import View, given


@dataclass(frozen=True)
class NormView(View):
    """A norm: `w` its gain, `b` its bias. Calling it runs the native module."""

    at: ClassVar[str] = "blocks.{i}.ln1."

    norm: Norm

    @property
    def w(self) -> Tensor:
        """Shapes: `[d_model]`"""
        return given(self.norm.gain(), self.norm.held)

    @property
    def b(self) -> Tensor:
        """Shapes: `[d_model]`. Zeros where there is no bias."""
        return given(self.norm.bias(), self.norm.held)

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[..., d_model]` -> `[..., d_model]`"""
        return self.norm.module(x)


@dataclass(frozen=True)
class BlockView(View):
    """One layer. Calling it runs only that layer, on a residual stream."""

    at: ClassVar[str] = "blocks.{i}."

    part: BlockPart
    run: Callable[[Tensor], Tensor]

    @property
    def attn(self) -> AttentionView:
        """Attention.

        Raises:
            WeightError: this layer has none that the description names.
        """
        return self._attention("attention", self.part.attn, "attn.")

    @property
    def cross_attn(self) -> AttentionView:
        """Attention to the encoder."""
        return self._attention("cross-attention", self.part.cross, "cross_attn.")

    @property
    def mlp(self) -> FeedForwardView:
        """MLP, or mixture of experts.

        Raises:
            WeightError: this layer has none that the description names.
        """
        part = self.part.mlp
        if part is None or isinstance(part, OpaquePart):
            raise WeightError(f"{type(self.part.module).__name__} has no MLP that is described.")
        view = MoEView(part) if isinstance(part, MoEPart) else MLPView(part)
        return view.with_points(self.points_here, "mlp.")

    def _absent(self) -> set[str]:
        there = {"attn": self.part.attn, "cross_attn": self.part.cross, "mlp": self.part.mlp}
        none = {name for name, part in there.items() if part is None}
        return none | ({"ln1", "ln2", "ln1_post", "ln2_post"} - set(self.part.norms))

    def _attention(self, what: str, part: AttentionPart | None, at: str) -> AttentionView:
        if part is None:
            raise WeightError(f"{type(self.part.module).__name__} has no {what} that is described.")
        return AttentionView(part).with_points(self.points_here, at)

    @property
    def ln1(self) -> NormView:
        """The norm before attention."""
        return self._norm("ln1")

    @property
    def ln2(self) -> NormView:
        """The norm before the MLP."""
        return self._norm("ln2")

    @property
    def ln1_post(self) -> NormView:
        """The norm after attention."""
        return self._norm("ln1_post")

    @property
    def ln2_post(self) -> NormView:
        """The norm after the MLP."""
        return self._norm("ln2_post")

    def _norm(self, slot: NormSlot) -> NormView:
        if slot not in self.part.norms:
            raise WeightError(f"{type(self.part.module).__name__} has no {slot}.")
        return NormView(self.part.norms[slot]).with_points(self.points_here, f"{slot}.")

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

    def __getitem__(self, index: int | slice) -> "Union[BlockView, BlocksView]":  # noqa: UP007
        if isinstance(index, slice):
            return BlocksView(self._views[index])
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"There is no layer {index}: the model has {len(self)} layers, 0 to "
                f"{len(self) - 1} (or -{len(self)} to -1)."
            )
        return self._views[index]

    def __len__(self) -> int:
        return len(self._views)

    def _ipython_key_completions_(self) -> list[int]:
        return list(range(len(self)))


@dataclass(frozen=True)
class EmbedView(View):
    """An embedding table; `W` has its rows. Calling it runs the native module on ids."""

    module: nn.Module

    @property
    def W(self) -> Tensor:
        """Shapes: `[row, d_model]`"""
        return given(table_rows(self.module), table_held(self.module))

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
class UnembedView(View):
    """The head: `W_U`, `b_U`. Calling it runs the native module on the final norm's output.

    `added` is a bias that the model adds outside the head.
    """

    linear: Linear
    added: tuple[nn.Module, str] | None = None

    @property
    def W_U(self) -> Tensor:
        """Shapes: `[d_model, d_vocab]`. A view of the embedding where the two are tied."""
        return given(self.linear.weight(), self.linear.held)

    @property
    def b_U(self) -> Tensor:
        """Shapes: `[d_vocab]`. Zeros where there is no bias."""
        own, added = self.linear.bias(), self.added
        whole = own if added is None else own + fetch(*added).flatten().to(own.device)
        return given(whole, self.linear.held)

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[batch, pos, d_model]` -> `[batch, pos, d_vocab]`"""
        return self.linear.module(x)
