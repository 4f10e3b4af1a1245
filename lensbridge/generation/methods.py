"""Methods of `LensModel` for generation, with hooks at every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.generation import options as generation
from lensbridge.generation.answers import answer_logprobs
from lensbridge.generation.comparing import Continuations
from lensbridge.generation.continuing import prompt_after
from lensbridge.generation.decoding import Decoding, cache_of, collector_for
from lensbridge.generation.processors import logits_processors
from lensbridge.generation.streaming import streamed
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.prompts import Side
from lensbridge.interventions.callbacks import callbacks_of
from lensbridge.interventions.running import Interventions, run_edited
from lensbridge.points.point_names import NamesFilter


class GenerationMethods(HookedModel):
    """Continuing an input; `lensbridge.generation` has the pieces."""

    answer_logprobs = answer_logprobs

    @torch.no_grad()
    def generate(
        self,
        input: Any = None,
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
        return_type: generation.ReturnType = "input",
        verbose: bool = True,
        interventions: Interventions = (),
        return_cache: bool = False,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        inputs_embeds: Tensor | None = None,
        add_generation_prompt: bool | None = None,
        **hf: Any,
    ) -> Any:
        """Continue text with HuggingFace's `generate`; hooks act at every step.

        Args:
            input: as in `forward`; lists of texts are padded on the left, where new tokens follow
                them, and for encoder-decoders on the right, where every text begins at position 0.
            max_new_tokens: how many at most.
            stop_at_eos: end a row at its EOS token.
            eos_token_id: other ids that end a row.
            do_sample: sample, or take the likeliest token (as does `temperature=0`).
            top_k: sample among this many.
            top_p: sample among the likeliest that have this probability together.
            temperature: divides the logits.
            freq_penalty: taken off a token's logit for each time that it occurred in the row.
            use_past_kv_cache: keep keys and values from step to step.
            prepend_bos: BOS before text; None means the default (True).
            padding_side: where short texts are padded, if not as said under `input`.
            return_type: "input" (text for text, ids for ids), "str" or "tokens".
            verbose: show a progress bar.
            interventions: `lensbridge.interventions` that act while the text is generated; their
                positions count the prompt and what is added to it.
            return_cache: also return the activations of every position, the last token's too,
                which one more pass reads. They are those of a run on the finished ids, up to
                rounding (and rotary embeddings of padded rows, which count from each row's first
                token here); keys and values are each position's own, kept once, and a pattern has
                keys for all positions. What not every position passed is left out, or an error
                where it is named.
            names_filter: what to keep, as in `run_with_cache`.
            device: where to keep it.
            inputs_embeds: embeddings `[batch, pos, d_model]` in the place of `input`; what comes
                back is the new ids.
            add_generation_prompt: whether a chat ends where the assistant's answer begins; None: it
                does unless the last message is the assistant's own.
            past_key_values: a key/value cache of the beginning of the input: those positions are
                not run again. The input is the whole text.
            hf: anything else that HuggingFace's `generate` takes: beams, processors, streamers,
                stopping criteria.

        Raises:
            TypeError: a keyword that nobody reads.
            ContextLengthError: prompt and new tokens exceed the context.
            InputError: an input or an intervention that does not fit; a cache of a beam search.

        Returns:
            What was generated, or with `return_cache` that and an `ActivationCache`.

        Units: `freq_penalty` in logits, after division by the temperature.
        """
        if not return_cache and not (names_filter is None and device is None):
            raise InputError("names_filter and device are of a cache: pass return_cache=True.")
        mask, past = hf.pop("attention_mask", None), hf.pop("past_key_values", None)
        self._check_generation(return_type, hf)
        text: dict[str, Any] = {"attention_mask": mask, "inputs_embeds": inputs_embeds}
        text |= {"prepend_bos": prepend_bos, "padding_side": padding_side or self._prompt_side()}
        text["add_generation_prompt"] = add_generation_prompt
        prepared = self._prompt(input, max_new_tokens, **text)
        callbacks = callbacks_of(self, interventions) if interventions else []
        read, kept = prompt_after(self, prepared, past, return_cache)
        self.engine.check(read, callbacks, max_new_tokens - 1 + return_cache)
        options = {
            "max_new_tokens": max_new_tokens,
            "use_cache": use_past_kv_cache,
            **({} if eos_token_id is None else {"eos_token_id": eos_token_id}),
            **generation.sampling_options(do_sample, temperature, top_k, top_p),
            **kept,
            **hf,
        }
        given, real = options.get("logits_processor"), self._prompt_mask(prepared)
        options["logits_processor"] = logits_processors(
            given, freq_penalty, temperature, verbose, max_new_tokens, real
        )
        config = generation.generation_config(self.native.core, self.tokens, options, stop_at_eos)
        collector = None
        if return_cache:
            collector = collector_for(self, config, options, names_filter, device)
        found = Decoding(self, prepared, config, options, callbacks, collector).run()
        shown = generation.as_asked(found, input, return_type, self.tokens, real)
        return shown if collector is None else (shown, cache_of(self, collector, prepared, found))

    @torch.no_grad()
    def generate_with_and_without(
        self,
        input: str,
        interventions: Interventions,
        max_new_tokens: int = 10,
        *,
        do_sample: bool = False,
        top_k: int = 8,
        **options: Any,
    ) -> Continuations:
        """Continue a text twice: without interventions, and with them.

        The result has both texts and the probabilities of the next token; a notebook shows them.

        Args:
            input: one text.
            interventions: those of `lensbridge.interventions`, such as a steering vector.
            max_new_tokens: how many at most.
            do_sample: sample, or take the likeliest token.
            top_k: how many likely next tokens of each run are listed.
            options: other options of `generate`.

        Raises:
            InputError: several texts, or an intervention that does not fit.

        Example:
            >>> import lensbridge
            >>> from lensbridge.interventions import steering_vector
            >>> model = lensbridge.load("demo")
            >>> steer = steering_vector(
            ...     model,
            ...     ["The Eiffel Tower is in the city of"],
            ...     ["The Galata Tower is in the city of"],
            ...     ("resid_post", 2),
            ... )
            >>> prompt = "The Galata Tower is in the city of"
            >>> print(model.generate_with_and_without(prompt, steer, max_new_tokens=1))
            without: The Galata Tower is in the city of Istanbul
            with:    The Galata Tower is in the city of Paris
        """
        if not isinstance(input, str):
            raise InputError(f"One text is continued twice, not {type(input).__name__}.")
        given: tuple[Interventions, ...] = ((), interventions)
        how = {
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "verbose": False,
            **options,
        }
        texts = [str(self.generate(input, interventions=one, **how)) for one in given]
        probs = torch.stack([self._next_probs(input, one, options) for one in given])
        ids = dict.fromkeys(probs.topk(min(top_k, probs.shape[1])).indices.flatten().tolist())
        tokens = tuple(map(self.to_single_str_token, ids))
        return Continuations(input, texts[0], texts[1], tokens, probs[:, list(ids)])

    def _next_probs(self, input: str, given: Interventions, options: dict[str, Any]) -> Tensor:
        """The probabilities of the next token. Shapes: `[d_vocab]`"""
        bos = {"prepend_bos": options.get("prepend_bos")}
        logits: Any = run_edited(self, input, given, **bos)
        probs: Tensor = logits[0, -1].float().softmax(-1).cpu()
        return probs

    def _prompt(self, input: Any, new: int, **said: Any) -> Prepared:
        prepared = self.prepare(input, **said)
        limit, apart = self.native.sizes.n_ctx, self.native.is_encoder_decoder
        generation.check_room(prepared, new, limit, apart)
        return prepared

    def _prompt_side(self) -> Side:
        """Where prompts are padded: before new tokens, but never before an encoder's first ones."""
        return "right" if self.native.is_encoder_decoder else "left"

    def _check_generation(self, return_type: str, hf: dict[str, Any]) -> None:
        """Refuse what this model cannot do, and options that nobody would read."""
        generation.check_return_type(return_type, self.tokens)
        generation.require_generation(self.native.core)
        generation.check_options(self.native.core, hf, self.preparer.accepted)

    def _prompt_mask(self, prepared: Prepared) -> Tensor | None:
        """The mask of the prompt, where what is generated begins with that."""
        apart = self.native.is_encoder_decoder or prepared.tokens is None
        mask = prepared.mask
        return None if apart or mask is None or mask.ndim != 2 else mask

    def stream(
        self, input: Any, max_new_tokens: int = 10, *, skip_prompt: bool = True, **options: Any
    ) -> Iterator[str]:
        """Generate text and give it piece by piece, as it comes.

        The model runs in a thread of its own, with the hooks that are in force here.

        Args:
            input: one text or row of ids, as in `generate`.
            max_new_tokens: how many at most.
            skip_prompt: leave the prompt out.
            options: others of `generate`.

        Yields:
            Text, a word or so at a time.

        Raises:
            InputError: several rows.
            TokenizerMissingError: the model has no tokenizer.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> "".join(model.stream("The Eiffel Tower is in the city of", 2, do_sample=False))
            ' Paris.'
        """
        return streamed(self, input, max_new_tokens, skip_prompt, options)
