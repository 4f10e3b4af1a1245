"""Layers that are skipped for one call: something stands in for them that hands on its input.

The native top-level forward still builds masks and rotary tables. Other threads that run the same
layers meanwhile get the native forward.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lensbridge.hooks.standing import StandIn, standing_in
from lensbridge.native.kv_cache import copy_of, is_cache
from lensbridge.native.parts import BlockPart

_forms: WeakKeyDictionary[type[nn.Module], int | None] = WeakKeyDictionary()


def layers_skipped(layers: Sequence[BlockPart]) -> AbstractContextManager[None]:
    """Inside, and in this thread only, these layers return what they are given.

    Layers that are no modules of their own run as they do.
    """
    modules = [layer.module for layer in layers if layer.members is None]
    return standing_in({one: _handing_on(one) for one in modules})


def _handing_on(layer: nn.Module) -> StandIn:
    def hand_on(native: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        return in_form(form_of(layer, native, args, kwargs), stream)

    return hand_on


def form_of(module: nn.Module, native: Callable[..., Any], args: Any, kwargs: Any) -> int | None:
    """How many values a module returns in a tuple, or None for a tensor alone.

    Nothing but a call tells, so the first module of each class is run once, on a copy of the
    key/value cache: masks and biases are made for what the cache holds.
    """
    cls = type(module)
    if cls not in _forms:
        copies = {id(cache): cache for cache in (*args, *kwargs.values()) if is_cache(cache)}
        own = {key: copy_of(cache) for key, cache in copies.items()}
        with torch.no_grad():
            output = native(
                *(own.get(id(one), one) for one in args),
                **{name: own.get(id(one), one) for name, one in kwargs.items()},
            )
        _forms[cls] = None if isinstance(output, torch.Tensor) else len(output)
    return _forms[cls]


def in_form(count: int | None, value: torch.Tensor) -> Any:
    """A value as a module returns it: alone, or first in a tuple."""
    return value if count is None else (value, *[None] * (count - 1))
