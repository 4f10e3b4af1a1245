"""Generation on HuggingFace's own `generate`, with hooks active at every step."""

import copy
from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lensbridge.errors import ContextLengthError, InputError, LensbridgeError, suggest
from lensbridge.inputs import Prepared
from lensbridge.tokens import Tokens

ReturnType = Literal["input", "str", "tokens"]


class FrequencyPenalty(LogitsProcessor):  # type: ignore[misc]
    """Takes `penalty` off a token's logit for each time it occurs in the row so far.

    It acts after the temperature in TransformerLens's `sample_logits` and before it in
    HuggingFace's list, hence the factor.
    """

    def __init__(self, penalty: float, temperature: float) -> None:
        self.amount = penalty * temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts = torch.zeros_like(scores).scatter_add_(
            1, input_ids, torch.ones_like(input_ids, dtype=scores.dtype)
        )
        return scores - self.amount * counts


class Progress(LogitsProcessor):  # type: ignore[misc]
    """A progress bar that moves once a step; it leaves the scores alone."""

    def __init__(self, total: int) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=total, desc="generating", unit="tok", leave=False)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.bar.update()
        return scores


def generation_config(
    hf_model: Any, tokens: Tokens, options: dict[str, Any], stop_at_eos: bool
) -> Any:
    """The model's own generation config with the options of one call; the model's stays as it is.

    Raises:
        TypeError: an option that neither `generate` nor the model's forward takes.
    """
    config = copy.deepcopy(hf_model.generation_config)
    for name in [name for name in options if name in vars(config)]:
        value = options.pop(name)
        setattr(config, name, value)
    if not stop_at_eos:
        config.eos_token_id = None
    elif config.eos_token_id is None and tokens.tokenizer is not None:
        config.eos_token_id = tokens.tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = 0 if tokens.tokenizer is None else tokens.pad_token_id
    return config


def check_options(hf_model: Any, options: dict[str, Any], accepted: frozenset[str]) -> None:
    """Refuse what nobody would read.

    Raises:
        TypeError: an unknown keyword.
    """
    known = {*signature(hf_model.generate).parameters, *vars(hf_model.generation_config), *accepted}
    for name in options:
        if name not in known:
            raise TypeError(f"generate() has no keyword {name!r}.{suggest(name, known)}")


def sampling_options(
    do_sample: bool, temperature: float, top_k: int | None, top_p: float | None
) -> dict[str, Any]:
    """What HuggingFace is told about sampling; temperature 0 means greedy.

    Raises:
        InputError: a value outside its range.
    """
    if temperature < 0:
        raise InputError(f"temperature is 0 or more, not {temperature}.")
    if top_k is not None and top_k <= 0:
        raise InputError(f"top_k is at least 1, not {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is above 0 and at most 1, not {top_p}.")
    if not do_sample or temperature == 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_k": top_k or 0,
        "top_p": 1.0 if top_p is None else top_p,
    }


def check_room(prepared: Prepared, new: int, limit: int) -> None:
    """Refuse to generate past the context.

    Raises:
        ContextLengthError: prompt and new tokens together exceed it.
    """
    given = prepared.tokens if prepared.tokens is not None else prepared.embeds
    assert given is not None
    if new < 1:
        raise InputError(f"max_new_tokens is at least 1, not {new}.")
    if given.shape[1] + new > limit:
        raise ContextLengthError(
            f"The prompt has {given.shape[1]} positions and max_new_tokens={new}; the context is "
            f"{limit}."
        )


def as_asked(
    sequences: Tensor, given: Any, return_type: ReturnType, tokens: Tokens
) -> Tensor | str | list[str]:
    """Generated ids in the form that was asked for: text for text, ids for ids.

    Raises:
        InputError: a return type that there is not.
    """
    if return_type not in ("input", "str", "tokens"):
        raise InputError(f"return_type is 'input', 'str' or 'tokens', not {return_type!r}.")
    is_text = isinstance(given, str) or (isinstance(given, Sequence) and isinstance(given[0], str))
    if return_type == "tokens" or (return_type == "input" and not is_text):
        return sequences
    decode = tokens.need().decode
    texts = [
        str(decode(row.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for row in sequences
    ]
    return texts[0] if isinstance(given, str) or (len(texts) == 1 and not is_text) else texts


def require_generation(core: Any) -> None:
    """Refuse models that cannot generate.

    Raises:
        LensbridgeError: the class has no head, or is no decoder.
    """
    if not core.can_generate():
        raise LensbridgeError(
            f"{type(core).__name__} cannot generate: it has no language-model head. "
            "Load the causal-LM class of this model."
        )


def processors(
    given: Any, freq_penalty: float, temperature: float, verbose: bool, total: int
) -> list[Any]:
    """The user's logits processors and ours."""
    found = list(given or [])
    if freq_penalty:
        found.append(FrequencyPenalty(freq_penalty, temperature or 1.0))
    if verbose:
        found.append(Progress(total))
    return found
