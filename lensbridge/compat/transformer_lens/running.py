"""Running a decoder: the arguments of TransformerLens's `forward` and `generate`."""

from typing import Any, Literal

from torch import Tensor

from lensbridge.compat.transformer_lens.texts import TextMethods
from lensbridge.errors import InputError
from lensbridge.tokens import Side


class RunMethods(TextMethods):
    """Forward passes, losses and generation."""

    def arguments(
        self,
        input: Any,
        return_type: Any = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: None = None,
        **hf: Any,
    ) -> dict[str, Any]:
        """What `lens.forward` is called with; the arguments are those of `forward`.

        Args:
            input: text, a list of texts, ids `[pos]` or `[batch, pos]`; with `start_at_layer` a
                residual stream.
            return_type: "logits", "loss", "both", or None to compute neither.
            loss_per_token: the loss of each pair instead of the mean.
            prepend_bos: BOS before text; None means `cfg.default_prepend_bos`.
            padding_side: of lists of texts; None means the tokenizer's.
            start_at_layer: skip the layers before it.
            tokens: the ids behind a residual stream, for the loss.
            shortformer_pos_embed: refused: no HuggingFace model has such positions.
            attention_mask: 1 for tokens, 0 for padding; made from ids that are padded on the left.
            stop_at_layer: give the residual stream that this layer reads.
            past_kv_cache: refused; pass HuggingFace's own as `past_key_values`.
            hf: for the HuggingFace model.
        """
        if past_kv_cache is not None:
            raise InputError(
                "past_kv_cache is TransformerLens's own; pass a HuggingFace cache: "
                "past_key_values=transformers.DynamicCache()."
            )
        if shortformer_pos_embed is not None:
            raise InputError("No HuggingFace model has shortformer positions.")
        if attention_mask is None and start_at_layer is None and "past_key_values" not in hf:
            attention_mask = self._mask(input, prepend_bos, padding_side)
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
            "labels": tokens,
            **hf,
        }

    def input_to_embed(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: None = None,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """What the first layer reads: `(residual, tokens, None, attention_mask)`."""
        given = {"prepend_bos": prepend_bos, "padding_side": padding_side}
        tokens = input if isinstance(input, Tensor) else self.to_tokens(input, **given)  # type: ignore[arg-type]
        tokens = tokens if tokens.ndim > 1 else tokens[None]
        if attention_mask is None:
            attention_mask = self._mask(tokens, prepend_bos, padding_side)
        asked = self.arguments(
            tokens, attention_mask=attention_mask, past_kv_cache=past_kv_cache, stop_at_layer=0
        )
        residual = self.lens.forward(**asked)
        assert isinstance(residual, Tensor)
        return residual, tokens, None, attention_mask

    def loss_fn(
        self,
        logits: Tensor,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Next-token cross-entropy."""
        return self.lens.loss_fn(logits, tokens, attention_mask, per_token)

    def generate(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        return_type: Literal["input", "str", "tokens"] = "input",
        verbose: bool = True,
        **generation: Any,
    ) -> Any:
        """Continue text with HuggingFace's `generate`; hooks act at every step.

        The arguments are those of lensbridge's `generate`, and `generation` is for HuggingFace's.
        Lists of texts are padded on the left.
        """
        if "attention_mask" not in generation:
            mask = self._mask(input, prepend_bos, padding_side)
            generation.update({} if mask is None else {"attention_mask": mask})
        return self.lens.generate(
            input,
            max_new_tokens,
            stop_at_eos,
            eos_token_id,
            do_sample,
            top_k,
            top_p,
            temperature,
            freq_penalty,
            use_past_kv_cache,
            self._bos(prepend_bos),
            padding_side,
            return_type,
            verbose,
            **generation,
        )
