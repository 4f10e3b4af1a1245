"""In what two harvests differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

FORMAT = "lensbridge.harvest/2"
"""Of the files of a harvest."""

_MOST = 3
"""How many differences an error lists."""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """In what two identities differ, for an error; "" if in nothing."""
    told = list(_walk("", _without_points(there), _without_points(asked)))
    if there.get("points") != asked.get("points"):
        told.insert(0, f"the points are {_names(there)} there and {_names(asked)} here")
    more = f"; and {len(told) - _MOST} more" if len(told) > _MOST else ""
    return "; ".join(told[:_MOST]) + more


def _without_points(one: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key != "points"}


def _names(one: Mapping[str, Any]) -> str:
    names = list(one.get("points") or ["none"])
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if names[_MOST:] else "")


def _walk(path: str, there: Any, asked: Any) -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(asked, Mapping):
        for key in {**there, **asked}:
            yield from _walk(f"{path}.{key}" if path else key, there.get(key), asked.get(key))
    elif there != asked:
        yield f"{path} is {_short(there)} there and {_short(asked)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
