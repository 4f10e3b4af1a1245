"""Generation with the arguments of TransformerLens's `generate`."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.activation_cache import ActivationCache
from lensbridge.compat.transformer_lens.point import NamesFilter
from lensbridge.compat.transformer_lens.streaming import chunks
from lensbridge.compat.transformer_lens.texts import TextMethods
from lensbridge.errors import InputError
from lensbridge.generation.options import ReturnType
from lensbridge.inputs.prompts import Side

_OUTPUTS = ("output_logits", "output_scores", "output_attentions", "output_hidden_states")
"""Options of outputs other than ids, which HuggingFace returns only in an output object."""


class GenerateMethods(TextMethods):
    """Continuing an input."""

    _asked: Any
    embed: Any

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
        return_type: Literal["input", "str", "tokens", "embeds"] = "input",
        verbose: bool = True,
        return_cache: bool = False,
        names_filter: NamesFilter = None,
        **generation: Any,
    ) -> Any:
        """Continue text with HuggingFace's `generate`; hooks act at every step.

        The arguments are those of lensbridge's `generate`; `generation` is passed to HuggingFace's.
        Lists of texts are padded on the left. `return_type="embeds"` gives the embeddings of the
        ids, and those of the input before them if it was embeddings, for which "input" means the
        same. With `output_logits`, `output_scores` and the like the whole output of HuggingFace is
        returned: `sequences`, `logits` of each step, ...
        """
        if "attention_mask" not in generation:
            mask = self._mask(input, prepend_bos, padding_side)
            generation.update({} if mask is None else {"attention_mask": mask})
        if any(generation.get(name) for name in _OUTPUTS):
            generation["return_dict_in_generate"] = True
        given = input if isinstance(input, Tensor) and input.ndim == 3 else None
        embeds = return_type == "embeds" or (return_type == "input" and given is not None)
        kind: ReturnType = "tokens" if return_type == "embeds" or embeds else return_type
        how: list[Any] = [max_new_tokens, stop_at_eos, eos_token_id]
        how += [do_sample, top_k, top_p, temperature, freq_penalty]
        how += [use_past_kv_cache, self._bos(prepend_bos), padding_side, kind, verbose]
        if return_cache:
            generation |= {"return_cache": True, "names_filter": self._asked(names_filter)}
        found = self.lens.generate(input, *how, **generation)
        result, cache = found if return_cache else (found, None)
        if embeds and isinstance(result, Tensor):
            result = self._embedded(result, given)
        return result if cache is None else (result, ActivationCache.of(cache))

    @torch.no_grad()
    def _embedded(self, ids: Tensor, before: Tensor | None) -> Tensor:
        """Shapes: `[batch, pos]`, `[batch, pos, d_model]` -> `[batch, pos, d_model]`"""
        new: Tensor = self.embed(ids)
        if before is None:
            return new
        rows = before.repeat_interleave(len(new) // len(before), 0)
        return torch.cat([rows.to(new), new], dim=1)

    def generate_stream(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        max_tokens_per_yield: int = 25,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        return_type: Literal["input", "str", "tokens"] = "input",
        **generation: Any,
    ) -> Iterator[Tensor]:
        """Continue one text or rows of ids, and yield the ids as they are generated.

        Args:
            input: a text, or ids.
            max_new_tokens: how many at most.
            max_tokens_per_yield: how many ids to gather before they are yielded; the first ones
                include those of the prompt.
            stop_at_eos: end a row at its EOS token.
            eos_token_id: other ids that end a row.
            prepend_bos: BOS before text; None means `cfg.default_prepend_bos`.
            padding_side: None means the tokenizer's.
            return_type: has no effect: ids are yielded, as in TransformerLens.
            generation: for `generate`.

        Yields:
            `[batch, tokens]` ids.

        Raises:
            InputError: a list of texts.
        """
        if isinstance(input, list | tuple):
            raise InputError("generate_stream takes one text, or ids: pass model.to_tokens(texts).")
        ids = input if isinstance(input, Tensor) else self.to_tokens(input, prepend_bos)
        stops = eos_token_id
        if stop_at_eos and stops is None and self.tokenizer is not None:
            stops = self.tokenizer.eos_token_id
        known = stops if isinstance(stops, list) else [] if stops is None else [stops]
        run = partial(
            self.generate,
            return_type="tokens",
            return_dict_in_generate=True,
            stop_at_eos=stop_at_eos,
            eos_token_id=eos_token_id,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            **generation,
        )
        return chunks(run, ids, max_new_tokens, max_tokens_per_yield, known if stop_at_eos else [])
