"""Tensors inside what a module is given or returns: alone, in tuples, mappings or objects.

A leaf is named by its keys: `(1, 0)` is the first tensor of the second item, `("logits",)` that of
a mapping or an object.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

Key: TypeAlias = int | str
Keys: TypeAlias = tuple[Key, ...]


def leaves(value: Any) -> Iterator[tuple[Keys, Tensor]]:
    """Every tensor in a value, in the order in which it is written down.

    Example:
        >>> import torch
        >>> [keys for keys, _ in leaves((torch.ones(1), {"a": torch.ones(2)}))]
        [(0,), (1, 'a')]
    """
    if isinstance(value, Tensor):
        yield (), value
        return
    for key, item in _items(value):
        for keys, tensor in leaves(item):
            yield (key, *keys), tensor


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a value; None where it has none."""
    return next((tensor for _, tensor in leaves(value)), None)


def at(value: Any, keys: Keys) -> Any:
    """What is under some keys; None where there is nothing."""
    for key in keys:
        found = dict(_items(value))
        if key not in found:
            return None
        value = found[key]
    return value


def with_leaf(value: Any, keys: Keys, new: Tensor) -> Any:
    """A value with another tensor under some keys. What holds it is copied, not written to."""
    if not keys:
        return new
    key, *rest = keys
    inner = with_leaf(dict(_items(value))[key], tuple(rest), new)
    if isinstance(value, tuple | list):
        items = [inner if i == key else one for i, one in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        changed: Any = copy(value)
        changed[key] = inner
        return changed
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{str(key): inner})
    changed = copy(value)
    setattr(changed, str(key), inner)
    return changed


def _items(value: Any) -> list[tuple[Key, Any]]:
    """What a value holds, by key."""
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return list(value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return [(one.name, getattr(value, one.name)) for one in fields(value)]
    held = getattr(value, "__dict__", None)
    return [] if isinstance(value, Tensor) or not held else _attributes(held)


def _attributes(held: Mapping[str, Any]) -> list[tuple[Key, Any]]:
    """The tensors among the attributes of an object; what else it has may be anything."""
    return [(name, value) for name, value in held.items() if isinstance(value, Tensor)]
