"""`HookedEncoder` (BERT) and `HookedEncoderDecoder` (T5)."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.circuits import CircuitMethods
from lensbridge.compat.transformer_lens.config import config_of
from lensbridge.compat.transformer_lens.names_of_models import get_official_model_name
from lensbridge.compat.transformer_lens.opening import Order
from lensbridge.compat.transformer_lens.root import LensRoot
from lensbridge.compat.transformer_lens.switches import Switches
from lensbridge.compat.transformer_lens.texts import TextMethods
from lensbridge.model import LensModel

T = TypeVar("T", bound="_Encoding")


class _Encoding(TextMethods, CircuitMethods, Switches, LensRoot):
    """What both classes share: loading without processing."""

    @classmethod
    def of(cls: type[T], lens: LensModel, **known: Any) -> T:
        """A model that `lensbridge.load` returned."""
        self = object.__new__(cls)
        LensRoot.__init__(self, lens, config_of(lens, **known))
        return self

    @classmethod
    def from_pretrained(
        cls: type[T],
        model_name: str,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: Any = None,
        device: Any = None,
        tokenizer: Any = None,
        move_to_device: bool = True,
        dtype: torch.dtype | str | None = torch.float32,
        **from_pretrained_kwargs: Any,
    ) -> T:
        """Open a model as it is; the arguments are those of `HookedTransformer`."""
        name = model_name if hf_model is not None else get_official_model_name(model_name)
        lens = Order(
            name=name,
            hf_model=hf_model,
            device=device if move_to_device else "cpu",
            dtype=dtype,
            tokenizer=tokenizer,
            hf=from_pretrained_kwargs,
        ).open()
        return cls.of(lens, model_name=model_name.rpartition("/")[2], attention_dir="bidirectional")

    def _encoded(self, input: Any) -> dict[str, Any]:
        """Text with the special tokens of these models; ids as they are."""
        texts = [input] if isinstance(input, str) else input
        if isinstance(texts, Tensor) or not isinstance(texts[0], str):
            return {"input": input}
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.lens.device)
        return {"input" if name == "input_ids" else name: encoded[name] for name in encoded}


class HookedEncoder(_Encoding):
    """An encoder with a masked-language-model head: BERT and its relatives."""

    def arguments(
        self,
        input: Any,
        return_type: Any = "logits",
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        one_zero_attention_mask: Tensor | None = None,
        **hf: Any,
    ) -> dict[str, Any]:
        """The arguments for `lens.forward`.

        Args:
            input: text, a list of texts, or ids.
            return_type: "logits", or None to compute none.
            token_type_ids: which of two sentences each token is in.
            attention_mask: 1 for tokens, 0 for padding.
            one_zero_attention_mask: its name in TransformerLens.
            hf: for the HuggingFace model.
        """
        mask = one_zero_attention_mask if attention_mask is None else attention_mask
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        given = {**self._encoded(input), **more}
        masked = {} if mask is None else {"attention_mask": mask}
        return {"return_type": return_type, **given, **masked, **hf}


class HookedEncoderDecoder(_Encoding):
    """An encoder and a decoder: T5 and its relatives."""

    def arguments(
        self,
        input: Any,
        decoder_input: Tensor | None = None,
        return_type: Any = "logits",
        one_zero_attention_mask: Tensor | None = None,
        **hf: Any,
    ) -> dict[str, Any]:
        """The arguments for `lens.forward`.

        Args:
            input: text, a list of texts, or ids, for the encoder.
            decoder_input: ids for the decoder.
            return_type: "logits", or None to compute none.
            one_zero_attention_mask: 1 for tokens of the encoder's input, 0 for padding.
            hf: for the HuggingFace model.
        """
        more = {} if decoder_input is None else {"decoder_input_ids": decoder_input}
        mask = one_zero_attention_mask
        masked = {} if mask is None else {"attention_mask": mask}
        return {"return_type": return_type, **self._encoded(input), **more, **masked, **hf}


__all__ = ["HookedEncoder", "HookedEncoderDecoder"]
