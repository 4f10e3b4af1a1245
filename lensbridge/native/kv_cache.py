"""The key/value cache of a native forward: what the argument is called, and what a cache holds.

transformers calls it `cache` from 5.24 on, and `past_key_values` before (`cache_params` in
state-space models). Layers, older models and those from outside have names of their own. No other
module knows these names; lensbridge's own argument is `past_key_values`.
"""

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor

SAID = ("past_key_values", "cache", "cache_params")
"""What users call it."""

_NATIVE = ("cache", *SAID, "past_key_value", "layer_past", "mems", "past_buckets_states", "state")


def name_of_cache(accepted: Collection[str]) -> str | None:
    """Under which name a forward takes a cache; None where it takes none.

    Args:
        accepted: the keywords of the forward.

    Example:
        >>> name_of_cache({"input_ids", "cache"}), name_of_cache({"past_key_values"})
        ('cache', 'past_key_values')
    """
    return next((name for name in _NATIVE if name in accepted), None)


def cache_in(named: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward, or in its output; None where there is none."""
    held = (named[name] for name in _NATIVE if name in named)
    return next((one for one in held if one is not None and not isinstance(one, Tensor)), None)


def apart_from_cache(named: Mapping[str, Any]) -> dict[str, Any]:
    """The other arguments of a forward."""
    return {name: value for name, value in named.items() if name not in (*_NATIVE, "use_cache")}


def is_cache(value: Any) -> bool:
    """Whether a value keeps keys and values, or states, from pass to pass."""
    return hasattr(value, "get_seq_length") or (isinstance(value, dict) and "slen" in value)


def columns_in(cache: Any) -> int | None:
    """How many positions a cache holds; None where it does not say, as recurrent states do not."""
    if isinstance(cache, dict):  # XLM and Flaubert
        return int(cache["slen"]) if "slen" in cache else None
    try:
        length = cache.get_seq_length() if is_cache(cache) else None
        return None if length is None else int(length)  # Reformer's does not say
    except ValueError:  # the state of a recurrent model
        return None


def copy_of(cache: Any) -> Any:
    """A cache of its own with the same keys and values, without their graph."""
    held = _tensors(cache, set())
    return deepcopy(cache, {id(tensor): tensor.detach().clone() for tensor in held})


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors inside a value, each once."""
    if id(value) in seen or callable(value):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    held = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    for one in [*(value if isinstance(value, list | tuple) else ()), *held.values()]:
        yield from _tensors(one, seen)
