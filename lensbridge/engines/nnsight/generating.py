"""Generation on the twin of a model: its passes one by one, and what nnsight is told."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lensbridge.engines.nnsight.draft import Draft
from lensbridge.errors import UnsupportedError

_DATA = (bool, int, float, str, list, tuple, dict, type(None))


class RehearsedGeneration:
    """Stands in the place of `hf_model.generate`: runs every pass that there may be.

    Args:
        hf_model: the twin.
        draft: what the passes are written into.
        cache: under which name the model takes keys and values of earlier passes.
    """

    def __init__(self, hf_model: Any, draft: Draft, cache: str | None) -> None:
        self.hf_model = hf_model
        self.draft = draft
        self.cache = cache
        self.kept: Any = None

    def __call__(
        self,
        *,
        generation_config: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_processor: Any = (),
        **options: Any,
    ) -> Tensor:
        """The ids that a generation gives, without values."""
        config = generation_config
        self._check(config, input_ids, logits_processor, options)
        assert input_ids is not None
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        with self.draft.generation(inputs, {"generation_config": config, **options}):
            for step in range(config.max_new_tokens):
                self._pass(step, input_ids, attention_mask, config.use_cache)
        shape = (len(input_ids), input_ids.shape[1] + config.max_new_tokens)
        with _disable_current_modes():
            tokens = torch.zeros(shape, dtype=torch.long)
        self.draft.generated(tokens)
        return tokens

    def _pass(self, step: int, ids: Tensor, mask: Tensor | None, cached: bool) -> None:
        with _disable_current_modes():
            given = _inputs(step, ids, mask, cached)
        past = {self.cache: self.kept} if step and cached and self.cache else {}
        out = self.hf_model(**given, **past, use_cache=cached)
        self.kept = getattr(out, "past_key_values", None)

    def _check(
        self, config: Any, ids: Tensor | None, processors: Any, options: Mapping[str, Any]
    ) -> None:
        """Refuse what cannot be sent, or has other rows than its input.

        Raises:
            UnsupportedError: with the option.
        """
        lacking = {
            "embeddings as input": ids is None,
            "several beams": (config.num_beams or 1) > 1,
            "several texts for each input": (config.num_return_sequences or 1) > 1,
            "freq_penalty, or processors": bool(processors),
            **{name: not isinstance(one, _DATA) for name, one in options.items()},
        }
        asked = [name for name, is_asked in lacking.items() if is_asked]
        if asked:
            raise UnsupportedError(
                f"Generation through nnsight has no {asked[0]}. It has ids or text, sampling or "
                "the likeliest token, and interventions at every step. Leave it out, or use "
                "lensbridge.load(...)."
            )


def _inputs(step: int, ids: Tensor, mask: Tensor | None, cached: bool) -> dict[str, Tensor]:
    """What a pass reads: the prompt, and 0 for what was generated after it."""
    later = torch.zeros(len(ids), step, dtype=torch.long)
    whole = torch.cat([ids, later], -1)
    given = {"input_ids": whole[:, -1:] if step and cached else whole}
    if mask is not None:
        given["attention_mask"] = torch.cat([mask, torch.ones_like(later)], -1).to(mask)
    return given
