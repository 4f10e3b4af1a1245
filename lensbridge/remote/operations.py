"""Operations: what a server can be asked, with the arguments that each takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lensbridge.errors import InputError, UnsupportedError, suggest
from lensbridge.remote.kinds import A_FUNCTION


@dataclass(frozen=True)
class Argument:
    """What an argument is.

    Args:
        is_right: whether a value may be one.
        what: the same in words.
    """

    is_right: Callable[[Any], bool]
    what: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float | np.floating)


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | list | tuple)


def _is_ids(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list | tuple) and all(map(_is_whole, value)))


def _one_of(*values: str) -> Argument:
    shown = ", ".join(map(repr, values))
    return Argument(lambda value: value is None or value in values, f"one of {shown} and None")


ANY = Argument(lambda value: True, "anything")
FLAG = Argument(_or_none(lambda value: isinstance(value, bool | np.bool_)), "True, False or None")
WHOLE = Argument(_or_none(_is_whole), "a whole number or None")
NUMBER = Argument(_or_none(_is_number), "a number or None")
ROWS = Argument(_or_none(_is_rows), "a tensor, a list or None")
IDS = Argument(_or_none(_is_ids), "an id, a list of ids or None")

_RETURNS = _one_of("logits", "loss", "both")
_SIDE = _one_of("left", "right")
_COUNT = _one_of("tokens", "columns")

_RUN = {
    "input": ANY,
    "return_type": _RETURNS,
    "loss_per_token": FLAG,
    "prepend_bos": FLAG,
    "padding_side": _SIDE,
    "attention_mask": ROWS,
    "position_ids": ROWS,
    "tokens": ROWS,
    "start_at_layer": WHOLE,
    "stop_at_layer": WHOLE,
    "labels": ROWS,
    "token_type_ids": ROWS,
    "decoder_input_ids": ROWS,
    "decoder_attention_mask": ROWS,
    "pixel_values": ROWS,
    "inputs_embeds": ROWS,
    "add_generation_prompt": FLAG,
    "within": ANY,
}
"""Arguments of every run; `within` are interventions of a context that the run is in."""

_KEPT = {
    "names_filter": ANY,
    "dtype": ANY,
    "pos_slice": ANY,
    "incl_bwd": FLAG,
    "remove_batch_dim": FLAG,
    "count": _COUNT,
}

_SAMPLED = {
    "max_new_tokens": WHOLE,
    "stop_at_eos": FLAG,
    "eos_token_id": IDS,
    "do_sample": FLAG,
    "top_k": WHOLE,
    "top_p": NUMBER,
    "temperature": NUMBER,
    "freq_penalty": NUMBER,
    "use_past_kv_cache": FLAG,
    "return_type": _one_of("input", "str", "tokens"),
    "num_beams": WHOLE,
    "num_return_sequences": WHOLE,
    "min_new_tokens": WHOLE,
    "repetition_penalty": NUMBER,
    "min_p": NUMBER,
    "typical_p": NUMBER,
    "no_repeat_ngram_size": WHOLE,
    "length_penalty": NUMBER,
    "return_cache": FLAG,
    "names_filter": ANY,
    "interventions": ANY,
    "random_state": ANY,
    "skip_prompt": FLAG,
}

_TEXT = {name: _RUN[name] for name in ("prepend_bos", "padding_side", "inputs_embeds", "within")}

OPERATIONS: Mapping[str, Mapping[str, Argument]] = {
    "forward": _RUN,
    "run_with_cache": {**_RUN, **_KEPT},
    "run_with_interventions": {**_RUN, "interventions": ANY},
    "plan": {**_RUN, **_KEPT},
    "gradients": {
        **{name: one for name, one in _RUN.items() if name not in ("return_type", "labels")},
        "names_filter": ANY,
        "of": ANY,
        "at": ANY,
        "return_activations": FLAG,
        "dtype": ANY,
        "pos_slice": ANY,
        "count": _COUNT,
    },
    "sweep": {
        "base": ANY,
        "cells": ANY,
        "metric": ANY,
        "baseline": FLAG,
        "exact": FLAG,
        "reduce": _one_of("scalar", "mean", "none"),
        "max_batch_tokens": WHOLE,
        "within": ANY,
    },
    "generate": {
        "input": ANY,
        "attention_mask": ROWS,
        "add_generation_prompt": FLAG,
        **_TEXT,
        **_SAMPLED,
    },
    "run": {"experiment": ANY},
    "tokens": {"method": ANY, "arguments": ANY},
}
"""What a server can be asked: names of methods of a model, and `tokens` for those of text."""

OF_TEXT = (
    *("to_tokens", "to_string", "to_str_tokens", "to_single_token", "to_single_str_token"),
    "get_token_position",
)
"""The methods behind `tokens`."""

_ELSEWHERE = {
    "past_key_values": "a cache of keys and values stays where the model is; pass the whole text",
    "max_bytes": "the server has a limit of its own (remote.limits.max_reply)",
    "detach": "the graph of autograd stays where the model is; use gradients",
    "fwd_hooks": A_FUNCTION,
    "bwd_hooks": A_FUNCTION,
    "logits_processor": A_FUNCTION,
    "stopping_criteria": A_FUNCTION,
    "streamer": "use remote.stream(...), which gives the text as it comes",
}


def check_arguments(operation: str, given: Mapping[str, Any]) -> None:
    """Refuse arguments that an operation does not take, or that are of another type.

    Raises:
        UnsupportedError: what only a model in this process can be given.
        TypeError: a keyword that nobody knows.
        InputError: a value of another type.
    """
    known = OPERATIONS[operation]
    for name, value in given.items():
        if name in _ELSEWHERE and name not in known:
            raise UnsupportedError(f"{operation}({name}=...) is not sent: {_ELSEWHERE[name]}.")
        if name not in known:
            raise TypeError(
                f"{operation} of a server takes no {name!r}.{suggest(name, known)} It takes "
                f"{', '.join(sorted(known))}."
            )
        if not known[name].is_right(value):
            raise InputError(f"{name} is {known[name].what}, not {value!r:.80}.")
