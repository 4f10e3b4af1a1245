"""Generation on HuggingFace's own `generate`, with hooks active at every step."""

import copy
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.errors import ContextLengthError, InputError, LensbridgeError, suggest
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.prompts import is_one_text, is_text
from lensbridge.inputs.tokens import Tokens

ReturnType = Literal["input", "str", "tokens"]
"""input: text for text, ids for ids. str: always text. tokens: always ids."""

_OWN = (
    "stop_at_eos",
    "freq_penalty",
    "use_past_kv_cache",
    "prepend_bos",
    "padding_side",
    "return_type",
    "verbose",
)
"""Keywords of `HookedModel.generate` that HuggingFace does not know, to suggest."""

_INSTEAD = {
    "generation_config": "its settings one by one (num_beams=4, ...)",
    "max_length": "max_new_tokens",
    "batch_size": "fewer texts or rows at a time: all of them run in one batch",
    "inputs": "the input first",
    "input_ids": "the input first",
}


def generation_config(
    hf_model: Any, tokens: Tokens, options: dict[str, Any], stop_at_eos: bool
) -> Any:
    """The model's own generation config with the options of one call; the model's stays as it is.

    What goes into the config is taken out of `options`.

    Raises:
        InputError: `eos_token_id` where no row is to stop at one.
    """
    if options.get("eos_token_id") is not None and not stop_at_eos:
        raise InputError("eos_token_id=... and stop_at_eos=False contradict each other.")
    config = copy.deepcopy(hf_model.generation_config)
    for name in [name for name in options if name in vars(config)]:
        value = options.pop(name)
        setattr(config, name, value)
    if not stop_at_eos:
        # an id that never comes: None would be filled in from the model's own config again
        config.eos_token_id = [hf_model.config.get_text_config().vocab_size]
    elif config.eos_token_id is None and tokens.tokenizer is not None:
        config.eos_token_id = tokens.special("eos")
    if config.pad_token_id is None:
        ends = config.eos_token_id if stop_at_eos else None
        config.pad_token_id = _filler(hf_model.generation_config.eos_token_id, ends)
    if config.stop_strings is not None:
        options.setdefault("tokenizer", tokens.need())
    return config


def ends(config: Any) -> tuple[int, ...]:
    """The ids that end a row."""
    found = config.eos_token_id
    return tuple(found) if isinstance(found, list) else (() if found is None else (int(found),))


def _filler(*eos: int | list[int] | None) -> int:
    """The id that fills a row after its end, while others go on: EOS, or 0."""
    ids = [one for given in eos for one in (given if isinstance(given, list) else [given])]
    return next((one for one in ids if one is not None), 0)


def check_options(hf_model: Any, options: dict[str, Any], accepted: frozenset[str]) -> None:
    """Refuse what nobody would read.

    Raises:
        TypeError: an unknown keyword, or one that has another name here.
    """
    settings = {name for name in vars(hf_model.generation_config) if not name.startswith("_")}
    named = set(signature(hf_model.generate).parameters) - {"kwargs"}
    known = {*named, *settings, *accepted, "tokenizer", "assistant_tokenizer"}
    known -= {"labels", *_INSTEAD}
    for name in options:
        if name in _INSTEAD:
            raise TypeError(f"generate() takes no {name!r}; pass {_INSTEAD[name]}.")
        if name not in known:
            hint = suggest(name, {*known, *_OWN})
            raise TypeError(f"generate() has no keyword {name!r}.{hint}")


def sampling_options(
    do_sample: bool, temperature: float, top_k: int | None, top_p: float | None
) -> dict[str, Any]:
    """The settings of HuggingFace's sampling; temperature 0 means greedy.

    Nothing is left open: what is None is filled in from the model's own generation config.

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
        return {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    return {
        "do_sample": True,
        "temperature": float(temperature),
        "top_k": top_k or 0,
        "top_p": 1.0 if top_p is None else top_p,
    }


def check_room(prepared: Prepared, new: int, limit: int | None, apart: bool) -> None:
    """Refuse a prompt that cannot be continued.

    Args:
        prepared: the prompt.
        new: how many new tokens there may be.
        limit: positions of the context, or None.
        apart: whether new tokens are in another sequence than the prompt (encoder-decoders).

    Raises:
        ContextLengthError: prompt and new tokens together exceed the context.
        InputError: no new tokens, or padding where the new tokens would follow.
        TypeError: the input says something beside ids and mask.
    """
    if new < 1 or new != int(new):
        raise InputError(f"max_new_tokens is a whole number, at least 1, not {new}.")
    given = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if given is None:
        return  # sound, which the text does not continue
    before = 0 if apart else given.shape[1]
    if limit is not None and before + new > limit:
        prompt = "" if apart else f"The prompt has {before} positions and "
        raise ContextLengthError(f"{prompt}max_new_tokens={new}; the context is {limit}.")
    mask = None if apart else prepared.mask
    if mask is not None and mask.ndim == 2 and not bool(mask[:, -1].all()):
        raise InputError(
            "New tokens follow the last position, and some rows have padding there. Pad on the "
            "left: padding_side='left', which is the default for a list of texts."
        )
    more = sorted(prepared.kwargs.keys() - {"attention_mask", "position_ids"})
    if more:
        raise TypeError(f"{', '.join(more)} in the input: pass it beside the input to generate().")


def inputs_of(prepared: Prepared) -> dict[str, Any]:
    """What HuggingFace's `generate` is given: ids or embeddings with a mask, or sound."""
    name = "input_ids" if prepared.tokens is not None else "inputs_embeds"
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if whole is None:
        return dict(prepared.kwargs)
    mask = prepared.mask
    if mask is None:
        mask = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
    return {name: whole, "attention_mask": mask}


def check_return_type(return_type: str, tokens: Tokens) -> None:
    """Refuse a form that what is generated cannot have.

    Raises:
        InputError: a return type that there is not.
        TokenizerMissingError: text from a model without a tokenizer.
    """
    if return_type not in ("input", "str", "tokens"):
        raise InputError(f"return_type is 'input', 'str' or 'tokens', not {return_type!r}.")
    if return_type == "str":
        tokens.need()


def as_asked(
    sequences: Any,
    given: Any,
    return_type: ReturnType,
    tokens: Tokens,
    mask: Tensor | None = None,
) -> Any:
    """Generated ids in the form that was asked for: text for text, ids for ids.

    With `return_dict_in_generate` HuggingFace's own output comes back as it is.

    Args:
        sequences: what `generate` gave, `[batch, pos]`.
        given: what the user passed.
        return_type: what the user asked for.
        tokens: to decode with.
        mask: `[batch, pos]` of the prompt, whose padding is no part of the text.
    """
    wants_ids = return_type == "tokens" or (return_type == "input" and not is_text(given))
    if wants_ids or not isinstance(sequences, Tensor):
        return sequences
    decode = tokens.need().decode
    texts = [
        str(decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for row in _without_padding(sequences, mask)
    ]
    many = len(texts) > 1 or (is_text(given) and not is_one_text(given))
    return texts if many else texts[0]


def _without_padding(sequences: Tensor, mask: Tensor | None) -> list[list[int]]:
    if mask is None:
        return sequences.tolist()
    copies = len(sequences) // len(mask)
    starts = mask.long().argmax(-1).repeat_interleave(copies).tolist()
    return [row[start:] for row, start in zip(sequences.tolist(), starts, strict=True)]


def require_generation(core: Any) -> None:
    """Refuse models that cannot generate.

    Raises:
        LensbridgeError: the class has no head, or is no decoder, or no class of transformers.
    """
    if not hasattr(core, "can_generate"):
        raise LensbridgeError(
            f"{type(core).__name__} is a plain module: HuggingFace's generate needs a transformers "
            "model. Call the model in a loop, or its own generation inside `with model.hooks(...):`"
            ", where hooks act too."
        )
    if not core.can_generate():
        raise LensbridgeError(
            f"{type(core).__name__} cannot generate: it has no language-model head. "
            "Load the causal-LM class of this model."
        )
