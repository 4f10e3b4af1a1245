"""Attention through a kernel that can be watched, where the chosen one cannot."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from torch import nn

from lensbridge.forks import in_forked
from lensbridge.native.settings import OWN_KERNEL

VISIBLE_KERNELS = frozenset({"sdpa", "eager", OWN_KERNEL})
"""The kernels that call one of the functions that a tap watches."""

_switch = RLock()
_switched: list[tuple[Any, str]] = []
"""Configs that are changed now, and what they had."""
_told: set[str] = set()


@contextmanager
def visible_kernel(root: nn.Module) -> Iterator[None]:
    """Run attention through sdpa while inside, because the chosen kernel is no torch function.

    Warns once for each kernel. One thread at a time, because this changes the model's config.
    """
    config: Any = root.config
    chosen = config._attn_implementation
    if chosen not in _told:
        _told.add(chosen)
        warnings.warn(
            f"attention runs through sdpa while scores or patterns are asked for: {chosen!r} "
            "does not show them",
            stacklevel=2,
        )
    with _switch:
        _switched.append((config, chosen))
        config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = chosen
            _switched.pop()


@in_forked
def _switch_back() -> None:
    """A forked process has the kernels that its models were given."""
    global _switch
    _switch = RLock()
    for config, chosen in _switched:
        config._attn_implementation = chosen
