"""Generation by vLLM, with declared interventions for each request."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lensbridge.engines.vllm.requests import ids_of
from lensbridge.engines.vllm.row_runs import RowRuns
from lensbridge.errors import UnsupportedError
from lensbridge.generation import options as generation
from lensbridge.generation.methods import GenerationMethods
from lensbridge.inputs.prepare import Prepared


class VLLMGeneration(RowRuns, GenerationMethods):
    """Continuing an input with vLLM."""

    def generate(  # type: ignore[override]  # fewer options
        self,
        input: Any = None,
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        *,
        prepend_bos: bool | None = None,
        padding_side: Any = None,
        return_type: generation.ReturnType = "input",
        verbose: bool = True,
        interventions: Any = (),
        add_generation_prompt: bool | None = None,
        seed: int | None = None,
        **other: Any,
    ) -> Any:
        """Continue text with vLLM. Its sampling draws other numbers than HuggingFace's.

        Args:
            input: text or ids, or a list.
            max_new_tokens: how many at most.
            stop_at_eos: end a row at its EOS token.
            eos_token_id: other ids that end a row.
            do_sample: sample, or take the likeliest token (as does `temperature=0`).
            top_k: sample among this many.
            top_p: sample among the likeliest that have this probability together.
            temperature: divides the logits.
            prepend_bos: BOS before text; None means the default (True).
            padding_side: where short texts are padded in what comes back; None: on the left.
            return_type: "input" (text for text, ids for ids), "str" or "tokens".
            verbose: nothing; vLLM shows no bar here.
            interventions: one or several for all rows; or a list with an entry for each row: its
                interventions, or None. They act in one batch.
            add_generation_prompt: as in `LensModel.generate`.
            seed: of the sampling.
            other: refused.

        Raises:
            UnsupportedError: an option that vLLM does not have.
            ContextLengthError: prompt and new tokens exceed the context of the `LLM`.
        """
        for name, value in other.items():
            if value:
                raise UnsupportedError(
                    f"The vLLM engine has no {name}. It generates with do_sample, top_k, top_p, "
                    "temperature and seed; for activations of what was generated call "
                    "run_with_cache on it."
                )
        generation.check_return_type(return_type, self.tokens)
        text = {
            "prepend_bos": prepend_bos,
            "padding_side": padding_side or "left",
            "add_generation_prompt": add_generation_prompt,
        }
        prepared = self._prepared(input, text)
        sampling = {
            "max_tokens": max_new_tokens,
            "temperature": temperature if do_sample else 0.0,
            "top_p": 1.0 if top_p is None else top_p,
            "top_k": 0 if top_k is None else top_k,
            "ignore_eos": not stop_at_eos,
            "stop_token_ids": _several(eos_token_id),
            "seed": seed,
        }
        made = self.run_rows(prepared, [], interventions, **sampling)
        found = self._with_new(prepared, made)
        return generation.as_asked(found, input, return_type, self.tokens, prepared.mask)

    def _with_new(self, prepared: Prepared, made: list[list[int]]) -> Tensor:
        """The rows with what was generated after them. Shapes: `[batch, pos]`"""
        pad = 0
        with suppress(Exception):
            pad = self.tokens.pad_token_id
        longest = max(map(len, made))
        new = torch.tensor([row + [pad] * (longest - len(row)) for row in made])
        return torch.cat([ids_of(prepared), new], dim=1)

    def stream(self, *args: Any, **options: Any) -> Any:
        """Refused: vLLM's `LLM` gives a text when it is finished.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "An LLM of vLLM gives a text when it is finished, not piece by piece. Call generate()."
        )


def _several(given: int | list[int] | None) -> list[int] | None:
    return [given] if isinstance(given, int) else given
