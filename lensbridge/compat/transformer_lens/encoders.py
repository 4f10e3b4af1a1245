"""`HookedEncoder` (BERT) and `HookedEncoderDecoder` (T5)."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.circuits import CircuitMethods
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.config_reading import config_of
from lensbridge.compat.transformer_lens.fresh import fresh_encoder
from lensbridge.compat.transformer_lens.names_of_models import get_official_model_name
from lensbridge.compat.transformer_lens.opening import Order
from lensbridge.compat.transformer_lens.root import LensRoot
from lensbridge.compat.transformer_lens.switches import Switches
from lensbridge.compat.transformer_lens.texts import TextMethods
from lensbridge.compat.transformer_lens.tokenizing import tokenizer_of
from lensbridge.errors import InputError
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
    """An encoder with a masked-language-model head: BERT and its relatives.

    Args:
        cfg: the config of a new model with random weights; see `from_pretrained` for trained ones.
        tokenizer: for text, used as it is.
        move_to_device: put the model on `cfg.device`.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
    ) -> None:
        asked = HookedTransformerConfig.unwrap(cfg)
        given = tokenizer_of(asked, tokenizer)
        super().__init__(*fresh_encoder(asked, given, move_to_device))
        self.lens.tokens.find = lambda: given

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
            return_type: "logits", None to compute none, or "predictions": the words at the masks.
            token_type_ids: which of two sentences each token is in.
            attention_mask: 1 for tokens, 0 for padding.
            one_zero_attention_mask: its name in TransformerLens.
            hf: for the HuggingFace model.
        """
        mask = one_zero_attention_mask if attention_mask is None else attention_mask
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        given = {**self._encoded(input), **more}
        masked = {} if mask is None else {"attention_mask": mask}
        kind = "logits" if return_type == "predictions" else return_type
        return {"return_type": kind, **given, **masked, **hf}

    def forward(self, input: Any, return_type: Any = "logits", *args: Any, **kwargs: Any) -> Any:
        """Run the model; the arguments are those of `arguments`.

        With "predictions", the word at the one mask, or a list "Prediction 0: ..." for several.

        Raises:
            TokenizerMissingError: "predictions" without a tokenizer.
        """
        result = super().forward(input, return_type, *args, **kwargs)
        if return_type != "predictions":
            return result
        masks = self._encoded(input)["input"] == self.lens.tokens.need().mask_token_id
        words = self.tokenizer.decode(result[masks].argmax(-1))
        if " " not in words:
            return words
        return [f"Prediction {i}: {word}" for i, word in enumerate(words.split(" "))]


class HookedEncoderDecoder(_Encoding):
    """An encoder and a decoder: T5 and its relatives."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise InputError(
            "A HookedEncoderDecoder is opened with HookedEncoderDecoder.from_pretrained(name), or "
            "with hf_model=... for a model object, also one that is made from a config."
        )

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
            decoder_input: ids for the decoder. For text it is the token that the decoder starts
                with, if none is passed.
            return_type: "logits", or None to compute none.
            one_zero_attention_mask: 1 for tokens of the encoder's input, 0 for padding.
            hf: for the HuggingFace model.
        """
        given, mask = self._encoded(input), one_zero_attention_mask
        if decoder_input is None and input is not given["input"]:
            config: Any = self.hf_model.config
            start = config.decoder_start_token_id
            decoder_input = torch.full((len(given["input"]), 1), start, device=self.lens.device)
        more = {} if decoder_input is None else {"decoder_input_ids": decoder_input}
        masked = {} if mask is None else {"attention_mask": mask}
        return {"return_type": return_type, **given, **more, **masked, **hf}

    @torch.no_grad()
    def generate(
        self,
        input: Any = "",
        one_zero_attention_mask: Tensor | None = None,
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        return_type: str | None = "input",
        verbose: bool = True,
        **generation: Any,
    ) -> Any:
        """Let the decoder write, with HuggingFace's `generate`.

        The arguments are those of lensbridge's `generate`, which `generation` is passed to.

        Returns:
            Ids of the decoder, or the text if text was passed or `return_type` is "str".
        """
        given = self._encoded(input)
        mask = given.get("attention_mask", one_zero_attention_mask)
        generation.update({} if mask is None else {"attention_mask": mask})
        how: list[Any] = [max_new_tokens, stop_at_eos, eos_token_id]
        how += [do_sample, top_k, top_p, temperature, freq_penalty]
        generation |= {"return_type": "tokens", "verbose": verbose}
        found = self.lens.generate(given["input"], *how, **generation)
        if return_type == "tokens" or (return_type == "input" and isinstance(input, Tensor)):
            return found
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return texts[0] if len(texts) == 1 else texts


__all__ = ["HookedEncoder", "HookedEncoderDecoder"]
