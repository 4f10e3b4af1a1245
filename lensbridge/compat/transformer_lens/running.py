"""Running a decoder: the arguments of TransformerLens's `forward`."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.cache import TransformerLensKeyValueCache
from lensbridge.compat.transformer_lens.generating import GenerateMethods
from lensbridge.compat.transformer_lens.tensors import get_offset_position_ids
from lensbridge.compat.transformer_lens.tokenizing import get_attention_mask
from lensbridge.errors import InputError
from lensbridge.inputs.prompts import Side


class RunMethods(GenerateMethods):
    """Forward passes, losses and generation."""

    points: Any

    def arguments(
        self,
        input: Any,
        return_type: Any = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
        **hf: Any,
    ) -> dict[str, Any]:
        """The arguments for `lens.forward`, from those of `forward`.

        Args:
            input: text, a list of texts, ids `[pos]` or `[batch, pos]`; with `start_at_layer` a
                residual stream.
            return_type: "logits", "loss", "both", or None to compute neither.
            loss_per_token: the loss of each pair instead of the mean.
            prepend_bos: BOS before text; None means `cfg.default_prepend_bos`.
            padding_side: for lists of texts; None means the tokenizer's.
            start_at_layer: skip the layers before it.
            tokens: the ids of a residual stream, for the loss.
            shortformer_pos_embed: what `input_to_embed` returned for a residual of a shortformer
                model; the model adds its own, so others are refused.
            attention_mask: 1 for tokens, 0 for padding; made from ids that are padded on the left.
            stop_at_layer: return the residual stream that this layer reads.
            past_kv_cache: keys and values of the positions before; pass HuggingFace's own cache as
                `past_key_values`.
            hf: for the HuggingFace model.
        """
        if shortformer_pos_embed is not None:
            self._check_positions(shortformer_pos_embed, start_at_layer)
        listening = self.points.tokens
        if listening is not None and listening.fwd_hooks and start_at_layer is None:
            input = listening(self._as_ids(input, prepend_bos, padding_side))
        if attention_mask is None and start_at_layer is None and "past_key_values" not in hf:
            attention_mask = self._mask(input, prepend_bos, padding_side)
        if past_kv_cache is not None:
            _check_cache(past_kv_cache, start_at_layer)
            input = self._as_ids(input, prepend_bos, padding_side)
            if attention_mask is None:
                attention_mask = self._mask_of_new(input, prepend_bos, padding_side)
            hf.update(past_key_values=past_kv_cache.given_to(len(input)), use_cache=True)
            attention_mask = past_kv_cache.whole_mask(attention_mask, input.shape[1])
            hf = {**self._places(attention_mask, input.shape[1]), **hf}
        texts = isinstance(input, list | tuple) and bool(input) and isinstance(input[0], str)
        return {
            "input": input,
            "return_type": return_type,
            "loss_per_token": loss_per_token,
            "prepend_bos": self._bos(prepend_bos),
            "padding_side": self._side(padding_side) if texts else padding_side,
            "start_at_layer": start_at_layer,
            "stop_at_layer": stop_at_layer,
            "attention_mask": attention_mask,
            "tokens": tokens,
            **hf,
        }

    def _places(self, mask: Tensor, new: int) -> dict[str, Tensor]:
        """Where new columns are in the text of each row, if rotary embeddings need it said.

        Args:
            mask: `[batch, pos]` of all columns, those of a cache in front.
            new: how many columns are new.
        """
        if self.cfg.positional_embedding_type != "rotary" or bool(mask.all()):
            return {}
        return {"position_ids": get_offset_position_ids(mask.shape[-1] - new, mask)}

    def input_to_embed(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What the first layer reads: `(residual, tokens, shortformer_pos_embed, attention_mask)`.

        The third is None but for shortformer models. The mask is None where there is no padding to
        look for; with `past_kv_cache` it is that of the positions before, too.
        """
        tokens = self._as_ids(input, prepend_bos, padding_side)
        if attention_mask is None and past_kv_cache is None:
            attention_mask = self._mask(tokens, prepend_bos, padding_side)
        kept = None if past_kv_cache is None else past_kv_cache.as_frozen()
        asked = self.arguments(
            tokens,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            attention_mask=attention_mask,
            past_kv_cache=kept,
            stop_at_layer=0,
        )
        residual = self.lens.forward(**asked)
        assert isinstance(residual, Tensor)
        if past_kv_cache is not None:
            attention_mask = asked["attention_mask"]
        elif attention_mask is None and self._side(padding_side) == "left":
            attention_mask = self._mask_of_new(tokens, prepend_bos, padding_side)
        return residual, tokens, self._shortformer(residual), attention_mask

    def _shortformer(self, residual: Tensor) -> Tensor | None:
        """The positions that a shortformer model adds to the input of queries and keys."""
        if self.cfg.positional_embedding_type != "shortformer":
            return None
        return self.lens.W_pos[: residual.shape[1]].expand(len(residual), -1, -1)

    def _check_positions(self, given: Tensor, start_at_layer: int | None) -> None:
        if self.cfg.positional_embedding_type != "shortformer" or start_at_layer is None:
            raise InputError(
                "shortformer_pos_embed goes with start_at_layer, and with a model whose "
                "cfg.positional_embedding_type is 'shortformer'."
            )
        if not torch.allclose(given, self._shortformer(given)):  # type: ignore[arg-type]
            raise InputError(
                "shortformer_pos_embed differs from the model's own positions, which it adds "
                "itself. Pass what input_to_embed returned, or change model.W_pos."
            )

    def _mask_of_new(self, input: Tensor, prepend_bos: bool | None, side: Side | None) -> Tensor:
        """The mask of ids that are added to a cache, padded on either side, or of a residual.

        Shapes: `[batch, pos]`
        """
        ones = torch.ones(input.shape[:2], dtype=torch.int, device=input.device)
        if input.ndim > 2 or self.tokenizer is None:
            return ones
        bos = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        return get_attention_mask(self.tokenizer, input, bos, self._side(side))

    def _as_ids(self, input: Any, prepend_bos: bool | None, padding_side: Side | None) -> Tensor:
        """Shapes: `[batch, pos]`"""
        if not isinstance(input, Tensor):
            return self.to_tokens(input, prepend_bos, padding_side)
        return input if input.ndim > 1 else input[None]

    def loss_fn(
        self,
        logits: Tensor,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Next-token cross-entropy."""
        return self.lens.loss_fn(logits, tokens, attention_mask, per_token)


def _check_cache(past_kv_cache: Any, start_at_layer: int | None) -> None:
    if not isinstance(past_kv_cache, TransformerLensKeyValueCache):
        raise InputError(
            "past_kv_cache is a TransformerLensKeyValueCache; pass HuggingFace's own caches as "
            "past_key_values."
        )
    if start_at_layer and not past_kv_cache.frozen:
        raise InputError(
            f"start_at_layer={start_at_layer} would add keys to the later layers of past_kv_cache "
            "and none to the earlier ones. Freeze it first: past_kv_cache.freeze()."
        )
