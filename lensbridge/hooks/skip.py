"""Layers that are skipped for one call: their `forward` is shadowed by one that hands on its input.

The native top-level forward still builds masks and rotary tables. Other threads that run the same
layers meanwhile get the native forward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lensbridge.hooks.scope import is_skipped, skipping
from lensbridge.native.kv_cache import is_cache

_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_lock = Lock()
_forms: WeakKeyDictionary[type[nn.Module], int | None] = WeakKeyDictionary()


@contextmanager
def layers_skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, and in this thread only, these layers return what they are given."""
    for layer in layers:
        _shadow(layer)
    try:
        with skipping(frozenset(layers)):
            yield
    finally:
        for layer in layers:
            _uncover(layer)


def _shadow(layer: nn.Module) -> None:
    with _lock:
        _users[layer] = _users.get(layer, 0) + 1
        if _users[layer] == 1:
            own = "forward" in layer.__dict__  # accelerate puts one there
            layer.forward = _dispatcher(layer, layer.forward, own)


def _dispatcher(layer: nn.Module, native: Callable[..., Any], own: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if is_skipped(layer):
            stream = args[0] if args else kwargs["hidden_states"]
            return _in_form(_form_of(layer, native, args, kwargs), stream)
        return native(*args, **kwargs)

    forward.restore = native if own else None  # type: ignore[attr-defined]
    return forward


def _form_of(layer: nn.Module, native: Callable[..., Any], args: Any, kwargs: Any) -> int | None:
    """How many values a layer returns in a tuple, or None for a tensor alone.

    Nothing but a call tells, so the first layer of each class is run once, on a copy of the
    key/value cache: masks and biases are made for what the cache holds.
    """
    cls = type(layer)
    if cls not in _forms:
        copies = {id(cache): cache for cache in (*args, *kwargs.values()) if is_cache(cache)}
        own = {key: deepcopy(cache) for key, cache in copies.items()}
        with torch.no_grad():
            output = native(
                *(own.get(id(one), one) for one in args),
                **{name: own.get(id(one), one) for name, one in kwargs.items()},
            )
        _forms[cls] = None if isinstance(output, torch.Tensor) else len(output)
    return _forms[cls]


def _in_form(count: int | None, stream: torch.Tensor) -> Any:
    return stream if count is None else (stream, *[None] * (count - 1))


def _uncover(layer: nn.Module) -> None:
    with _lock:
        _users[layer] -= 1
        if _users[layer] == 0:
            del _users[layer]
            restore = layer.__dict__["forward"].restore
            if restore is None:
                del layer.__dict__["forward"]
            else:
                layer.forward = restore
