"""Weights and circuits of a model: `model.W_Q`, `model.OV`, `model.all_composition_scores("K")`."""

from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.parameters import with_grad
from lensbridge.compat.transformer_lens.weights import Weights
from lensbridge.model import LensModel

Keys = Literal["repeated", "stored"]
"""Whether keys and values that query heads share are repeated for each query head."""


class CircuitMethods:
    """Weights of all layers as ordinary tensors, and products of them.

    A stack is a copy: write to `model.blocks[5].attn.W_Q` to edit the model.
    """

    lens: LensModel
    cfg: HookedTransformerConfig
    weights: Weights
    keys: Keys = "repeated"

    def _stack(self, name: str) -> Tensor:
        stored = self.lens.weight_stack(name)
        prefix = self.lens.native.main.prefix
        names = [f"{prefix}.{i}.{name}" for i in range(self.cfg.n_layers)]
        if self.keys == "stored" or names[0] not in self.weights.beside:
            return stored.full()
        layers = [self.weights[one]() for one in names]
        return torch.stack([layer.to(layers[0].device) for layer in layers])

    @property
    def W_E(self) -> Tensor:
        """Shapes: `[d_vocab, d_model]`"""
        return with_grad(self.weights["embed.W_E"](), self.lens.hf_model.parameters())

    @property
    def W_pos(self) -> Tensor:
        """Shapes: `[n_ctx, d_model]`"""
        return with_grad(self.lens.W_pos, self.lens.hf_model.parameters())

    @property
    def W_E_pos(self) -> Tensor:
        """Shapes: `[d_vocab + n_ctx, d_model]`"""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Tensor:
        """Shapes: `[d_model, d_vocab]`"""
        return with_grad(self.lens.W_U, self.lens.hf_model.parameters())

    @property
    def b_U(self) -> Tensor:
        """Shapes: `[d_vocab]`"""
        return self.lens.b_U

    @property
    def W_Q(self) -> Tensor:
        """Shapes: `[layer, head, d_model, d_head]`"""
        return self._stack("attn.W_Q")

    @property
    def W_K(self) -> Tensor:
        """Shapes: `[layer, head, d_model, d_head]`, shared keys repeated for each query head."""
        return self._stack("attn.W_K")

    @property
    def W_V(self) -> Tensor:
        """Shapes: `[layer, head, d_model, d_head]`, shared values repeated for each query head."""
        return self._stack("attn.W_V")

    @property
    def W_O(self) -> Tensor:
        """Shapes: `[layer, head, d_head, d_model]`"""
        return self._stack("attn.W_O")

    @property
    def b_Q(self) -> Tensor:
        """Shapes: `[layer, head, d_head]`"""
        return self._stack("attn.b_Q")

    @property
    def b_K(self) -> Tensor:
        """Shapes: `[layer, head, d_head]`"""
        return self._stack("attn.b_K")

    @property
    def b_V(self) -> Tensor:
        """Shapes: `[layer, head, d_head]`"""
        return self._stack("attn.b_V")

    @property
    def b_O(self) -> Tensor:
        """Shapes: `[layer, d_model]`"""
        return self._stack("attn.b_O")

    @property
    def W_in(self) -> Tensor:
        """Shapes: `[layer, d_model, d_mlp]`; with experts an expert axis after the layer."""
        return self._stack("mlp.W_in")

    @property
    def W_gate(self) -> Tensor | None:
        """Shapes: `[layer, d_model, d_mlp]`; None where the MLP is not gated."""
        return self._stack("mlp.W_gate") if self.cfg.gated_mlp else None

    @property
    def W_out(self) -> Tensor:
        """Shapes: `[layer, d_mlp, d_model]`"""
        return self._stack("mlp.W_out")

    @property
    def b_in(self) -> Tensor:
        """Shapes: `[layer, d_mlp]`"""
        return self._stack("mlp.b_in")

    @property
    def b_out(self) -> Tensor:
        """Shapes: `[layer, d_model]`"""
        return self._stack("mlp.b_out")

    @property
    def QK(self) -> Any:
        """`W_Q @ W_K.T` of every head, as a `FactoredMatrix`.

        Shapes: `[layer, head, d_model, d_model]`
        """
        return self.lens.QK

    @property
    def OV(self) -> Any:
        """`W_V @ W_O` of every head, as a `FactoredMatrix`.

        Shapes: `[layer, head, d_model, d_model]`
        """
        return self.lens.OV

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """The sum of the biases that were added to the stream before a layer.

        Shapes: `[d_model]`
        """
        return self.lens.accumulated_bias(layer, mlp_input, include_mlp_biases)

    def all_composition_scores(self, mode: Any) -> Any:
        """How much each head's input depends on each earlier head's output: "Q", "K" or "V".

        Shapes: `[layer, head, layer, head]`, the writing head first.
        """
        return self.lens.all_composition_scores(mode)

    @property
    def all_head_labels(self) -> Any:
        """Names of the heads: "L0H0", ... Calling it gives the same list."""
        return self.lens.all_head_labels

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The column of W_U for each token.

        Shapes: `[d_model]`, or with the axes of the tokens in front.
        """
        return self.lens.tokens_to_residual_directions(tokens)

    def tl_named_parameters(self) -> Any:
        """Every weight with its name."""
        return ((name, read()) for name, read in self.weights.stored.items())

    def tl_parameters(self) -> dict[str, Tensor]:
        """Every weight by name."""
        return dict(self.tl_named_parameters())

    def get_params(self) -> dict[str, Tensor]:
        """Every weight by name."""
        return self.tl_parameters()
