"""Heads as products of their weights, and other quantities that need no run."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache.residual.terms import residual_terms
from lensbridge.errors import InputError, TokenError, WeightError
from lensbridge.hooks.engine import Engine
from lensbridge.native.parts import StackPart
from lensbridge.tensors.factored import FactoredMatrix
from lensbridge.weights.circuits.biases import accumulated, steps_before
from lensbridge.weights.circuits.composition import CompositionScores, scores_between_layers
from lensbridge.weights.circuits.heads import Circuit, HeadLayers, head_labels
from lensbridge.weights.components import Components

Mode: TypeAlias = Literal["Q", "K", "V"]
"""Whether the later head reads with its query, its key or its value."""


class Labels(list[str]):
    """A list of names. Calling it returns the list, because some notebooks call it as a method."""

    def __call__(self) -> "Labels":
        """The list itself."""
        return self


class CircuitMethods:
    """Methods of `LensModel` for circuits: products of weights, kept as their factors.

    They are products of `W_Q`, `W_K`, `W_V` and `W_O`. They leave out what depends on the input:
    norms before and after attention, norms of q and k, rotary, gates.
    """

    @property
    @abstractmethod
    def components(self) -> Components:
        """Every part of the model under the field's names."""

    engine: Engine
    to_single_token: Callable[[str], int]
    W_E: Any
    W_pos: Any
    W_U: Any
    device: Any
    dtype: Any

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q @ W_K.T` of every head: how a query position scores a key position.

        Shapes: `[layer, head, d_model, d_model]`, with key/value heads repeated for their queries.
        Lazy: `model.QK[5, 3]` reads only layer 5.

        Raises:
            WeightError: a layer has no attention, or layers differ in size.
        """
        return self._of_all_layers("QK")

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V @ W_O` of every head: what a head moves from where it attends. As `QK`."""
        return self._of_all_layers("OV")

    def QK_for_attn_layers(self, stack: str | None = None) -> tuple[list[int], FactoredMatrix]:
        """The layers that have `QK`, and the `QK` of these.

        Args:
            stack: another stack than the main one: "encoder" or "vision.blocks".

        Shapes: `[n, head, d_model, d_model]`, row i for layer `layers[i]`.

        Raises:
            WeightError: no layer has attention, or their sizes differ.
        """
        heads = HeadLayers.of(self._stack_part(stack), "QK")
        return heads.layers, heads.product("QK")

    def OV_for_attn_layers(self, stack: str | None = None) -> tuple[list[int], FactoredMatrix]:
        """`OV` of the layers that have it; as `QK_for_attn_layers`."""
        heads = HeadLayers.of(self._stack_part(stack), "OV")
        return heads.layers, heads.product("OV")

    @torch.no_grad()
    def all_composition_scores(self, mode: Mode, stack: str | None = None) -> CompositionScores:
        """How much of what each head writes a later head reads with its query, key or value.

        `||L @ R|| / (||L|| ||R||)` in the Frobenius norm. L is the OV of the earlier head, R the
        QK ("Q"), the transposed QK ("K") or the OV ("V") of the later one. Norms between the heads
        are left out. No d_model x d_model matrix is made, and no gradient is kept; for gradients
        use `lensbridge.analysis.composition_scores`.

        Args:
            mode: "Q", "K" or "V".
            stack: as in `QK_for_attn_layers`.

        Shapes: `[layer, head, later layer, later head]`, zero unless the second is later. Only
            layers with attention have a row: `scores.layer_indices` has their numbers.

        Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

        Raises:
            InputError: another mode.
            WeightError: as `QK_for_attn_layers`.
        """
        if mode not in ("Q", "K", "V"):
            raise InputError(f"mode must be 'Q', 'K' or 'V', not {mode!r}.")
        chosen = self._stack_part(stack)
        heads = HeadLayers.of(chosen, "OV", "QK")
        writers = heads.product("OV")
        readers = writers if mode == "V" else heads.product("QK")
        scores = scores_between_layers(writers, readers.T if mode == "K" else readers)
        return CompositionScores.of(scores, heads.layers, self._named_heads(chosen, heads.layers))

    @property
    def all_head_labels(self) -> Labels:
        """`L0H0`, `L0H1`, ... for every head. In an encoder-decoder, `EL0H0` and `DL0H0`."""
        native = self.components.native
        stacks = (*native.towers, native.main) if native.is_encoder_decoder else (native.main,)
        return Labels(
            label
            for one in stacks
            for label in self._named_heads(one, list(range(len(one.blocks))))
        )

    @property
    def attn_head_labels(self) -> Labels:
        """The labels of the main stack's heads, which are the rows of `all_composition_scores`."""
        heads = HeadLayers.of(self.components.native.main, "OV", "QK")
        return Labels(self._named_heads(self.components.native.main, heads.layers))

    def composition_layer_indices(self) -> list[int]:
        """The number of the layer of each row of `all_composition_scores`."""
        return HeadLayers.of(self.components.native.main, "OV", "QK").layers

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """The sum of what the biases `b_O` and `b_out` of all earlier layers add to the stream.

        Multipliers of branches and of the stream are applied. Cross-attention counts too.

        Args:
            layer: 0 to n_layers; the biases of the layers before this one count.
            mlp_input: whether to go on to the input of this layer's MLP, which adds the bias of its
                attention unless the two are parallel.
            include_mlp_biases: whether the biases of MLPs count.

        Shapes: `[d_model]`.

        Raises:
            InputError: no such layer.
            WeightError: a bias goes through a norm or a router, so what it adds depends on the
                input; the message says where.
        """
        stack = self.components.native.main
        count = len(stack.blocks)
        if not 0 <= layer <= count - mlp_input:
            raise InputError(
                f"layer={layer}, mlp_input={mlp_input}: there are {count} layers. Pass 0 to "
                f"{count - 1}, or {count} without mlp_input for what all of them add."
            )
        part = stack.blocks[min(layer, count - 1)]
        if mlp_input and part.mlp is None:
            raise WeightError(f"Layer {layer} has no MLP. Pass mlp_input=False.")
        steps = residual_terms(stack, self.engine.sites.__contains__)
        before = steps_before(steps, f"{stack.prefix}.{layer}.", part, mlp_input)
        zero = torch.zeros(stack.sizes.d_model, dtype=self.dtype, device=self.device)
        return accumulated(before, zero, include_mlp_biases)

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The columns of `W_U` of some tokens: their dot product with the input of the head is the
        logit, before `b_U`.

        Where the final norm has a gain, the direction in the stream is the column times that gain;
        `cache.apply_ln_to_stack` applies it.

        Args:
            tokens: an id, a text that is one token, a list of these, or ids of any shape.

        Shapes: `[d_model]` for one token, else `[..., d_model]` with the shape of the ids.

        Raises:
            TokenError: a text of several tokens, or an id outside the vocabulary.
            WeightError: the head has another layer before `W_U`, so tokens have no direction.
        """
        if self.components.native.head_hidden is not None:
            raise WeightError(
                "This model's head has another layer before W_U, so a token has no direction in "
                "the residual stream. The columns themselves are model.W_U[:, ids]."
            )
        weight: Tensor = self.W_U
        ids = self._ids(tokens)
        size = weight.shape[-1]
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < size):
            raise TokenError(f"Ids {int(ids.min())} to {int(ids.max())}: there are {size} tokens.")
        return weight.mT[ids.to(weight.device)]

    def _ids(self, tokens: Any) -> Tensor:
        if isinstance(tokens, str):
            return torch.tensor(self.to_single_token(tokens))
        if isinstance(tokens, Sequence) and any(isinstance(one, str) for one in tokens):
            one_each = [self.to_single_token(t) if isinstance(t, str) else t for t in tokens]
            return torch.tensor(one_each)
        ids = torch.as_tensor(tokens)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TokenError(f"Tokens are ids or texts, and these are {ids.dtype}.")
        return ids

    @property
    def W_E_pos(self) -> Tensor:
        """The rows of `W_E`, then those of `W_pos`: everything that the first layer can read.

        Shapes: `[d_vocab + n_ctx, d_model]`, a copy.

        Raises:
            WeightError: positions are not learned.
        """
        return torch.cat([self.W_E, self.W_pos])

    # --- stacks and layers -------------------------------------------------------------------

    def _stack_part(self, prefix: str | None) -> StackPart:
        native = self.components.native
        stacks = {one.prefix: one for one in native.stacks}
        if prefix is not None and prefix not in stacks:
            raise WeightError(f"There is no stack {prefix!r}. Pass one of: {', '.join(stacks)}.")
        return native.main if prefix is None else stacks[prefix]

    def _named_heads(self, stack: StackPart, layers: list[int]) -> list[str]:
        two_stacks = self.components.native.is_encoder_decoder
        return head_labels(stack, layers, stack.prefix[0].upper() if two_stacks else "")

    def _of_all_layers(self, circuit: Circuit) -> FactoredMatrix:
        heads = HeadLayers.of(self.components.native.main, circuit)
        count = len(self.components.native.blocks)
        if len(heads.layers) < count:
            raise WeightError(
                f"Only layers {heads.layers} of {count} have {circuit}. Take these: layers, "
                f"{circuit.lower()} = model.{circuit}_for_attn_layers(). Or take one: "
                f"model.blocks[{heads.layers[0]}].attn.{circuit}."
            )
        return heads.product(circuit)
