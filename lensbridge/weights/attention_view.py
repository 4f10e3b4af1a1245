"""The weights of attention under the field's names: `model.blocks[5].attn.W_Q`."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lensbridge.native.linear import fetch
from lensbridge.native.parts import AttentionPart
from lensbridge.tensors.factored import FactoredMatrix
from lensbridge.tensors.layouts import per_head_out, repeat_kv
from lensbridge.tensors.weight_copy import live_or_copy
from lensbridge.weights import effective
from lensbridge.weights.view import View, given


@dataclass(frozen=True)
class AttentionView(View):
    """Attention of one layer."""

    at: ClassVar[str] = "blocks.{i}.attn."

    part: AttentionPart

    @property
    def W_Q(self) -> Tensor:
        """Shapes: `[head, d_model, d_head]`"""
        return given(effective.weight(self.part, "q"), effective.held(self.part, "q"))

    @property
    def W_K(self) -> Tensor:
        """Shapes: `[kv_head, d_model, d_head]`, as stored."""
        return given(effective.weight(self.part, "k"), effective.held(self.part, "k"))

    @property
    def W_V(self) -> Tensor:
        """Shapes: `[kv_head, d_model, d_head]`, as stored."""
        return given(effective.weight(self.part, "v"), effective.held(self.part, "v"))

    @property
    def W_O(self) -> Tensor:
        """Shapes: `[head, d_head, d_model]`"""
        return given(per_head_out(self.part.out.weight(), self.part.n_heads), self.part.out.held)

    @property
    def W_K_expanded(self) -> Tensor:
        """Shapes: `[head, d_model, d_head]`: one for each query head (a copy if they share)."""
        return live_or_copy(repeat_kv(self.W_K, self.part.n_heads, axis=0))

    @property
    def W_V_expanded(self) -> Tensor:
        """Shapes: `[head, d_model, d_head]`: one for each query head (a copy if they share)."""
        return live_or_copy(repeat_kv(self.W_V, self.part.n_heads, axis=0))

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q @ W_K.T` of every head. Shapes: `[head, d_model, d_model]`"""
        return FactoredMatrix(self.W_Q, self.W_K_expanded.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V @ W_O` of every head. Shapes: `[head, d_model, d_model]`"""
        return FactoredMatrix(self.W_V_expanded, self.W_O)

    @property
    def b_Q(self) -> Tensor:
        """Shapes: `[head, d_head]`. Zeros where there is no bias, as in every `b_*`."""
        return given(effective.bias(self.part, "q"), effective.held(self.part, "q"))

    @property
    def b_K(self) -> Tensor:
        """Shapes: `[kv_head, d_head]`"""
        return given(effective.bias(self.part, "k"), effective.held(self.part, "k"))

    @property
    def b_V(self) -> Tensor:
        """Shapes: `[kv_head, d_head]`"""
        return given(effective.bias(self.part, "v"), effective.held(self.part, "v"))

    @property
    def b_O(self) -> Tensor:
        """Shapes: `[d_model]`"""
        own, added = self.part.out.bias(), self.part.writer.bias
        whole = own if added is None else own + fetch(*added).to(own.device)
        return given(whole, self.part.out.held)
