"""`model.generate`: continuing text, with hooks at every step."""

from functools import partial
from typing import Any

import torch
from torch import nn

from lensbridge import generation
from lensbridge.inputs import Prepared, Preparer
from lensbridge.parts import Native
from lensbridge.run import Engine
from lensbridge.tokens import Side, Tokens


class GenerationMethods:
    """What a model offers around generation (`lensbridge.generation` has the pieces)."""

    hf_model: nn.Module
    native: Native
    engine: Engine
    tokens: Tokens
    _preparer: Preparer

    @torch.no_grad()
    def generate(
        self,
        input: Any,
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
        **hf: Any,
    ) -> Any:
        """Continue text with HuggingFace's `generate`; hooks act at every step.

        Args:
            input: as in `forward`; lists of texts are padded on the left.
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
            padding_side: left unless asked otherwise.
            return_type: "input" (text for text, ids for ids), "str" or "tokens".
            verbose: show a progress bar.
            hf: anything else that HuggingFace's `generate` takes: beams, processors, streamers,
                stopping criteria.

        Raises:
            TypeError: a keyword that nobody reads.
            ContextLengthError: prompt and new tokens exceed the context.

        Units: `freq_penalty` in logits, after division by the temperature.
        """
        core: Any = self.native.core
        generation.require_generation(core)
        generation.check_options(core, hf, self._preparer.accepted)
        mask = hf.pop("attention_mask", None)
        prepared = self._preparer.prepare(
            input,
            prepend_bos=prepend_bos,
            padding_side=padding_side or "left",
            attention_mask=mask,
        )
        generation.check_room(prepared, max_new_tokens, self.native.sizes.n_ctx)
        options = {
            "max_new_tokens": max_new_tokens,
            "use_cache": use_past_kv_cache,
            **({} if eos_token_id is None else {"eos_token_id": eos_token_id}),
            **generation.sampling_options(do_sample, temperature, top_k, top_p),
            **hf,
        }
        processors = generation.processors(
            options.pop("logits_processor", None),
            freq_penalty,
            temperature,
            verbose,
            max_new_tokens,
        )
        config = generation.generation_config(core, self.tokens, options, stop_at_eos)
        sequences = self._generate(prepared, config, processors, options)
        return generation.as_asked(sequences, input, return_type, self.tokens)

    def _generate(self, prepared: Prepared, config: Any, processors: Any, options: Any) -> Any:
        given = (
            {"input_ids": prepared.tokens}
            if prepared.tokens is not None
            else {"inputs_embeds": prepared.embeds}
        )
        whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
        assert whole is not None
        mask = prepared.mask
        if mask is None:
            mask = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
        hf_model: Any = self.hf_model
        call = partial(
            hf_model.generate,
            **given,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            **options,
        )
        if self.engine.is_idle:
            return call()
        with self.engine.attached([]) as attachment:  # its own, so that `hook.step` starts at 0
            attachment.count_run()
            return call()
