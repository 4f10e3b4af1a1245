"""Writes an architecture as an adapter file, in the style of the built-in ones."""

import json
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from lensbridge.spec import Architecture, Stack

_WIDTH = 100
_POSITIONAL = {"Attention": 1, "MLP": 1, "GatedMLP": 1, "FusedGatedMLP": 1, "MoE": 1, "Mixer": 1}
_POSITIONAL["FusedQKV"] = 1
_ORDER = (
    *("name", "classes", "overrides", "requires", "prefix", "config", "dims"),
    *("embed", "embed_scale", "pos_embed", "embed_norm", "blocks", "block", "final_norm"),
    *("head_hidden", "unembed", "logit_scale", "logit_softcap", "pooler", "projector", "towers"),
)


def render_adapter(architecture: Architecture, remarks: tuple[str, ...] = ()) -> str:
    """The text of an adapter file.

    Args:
        architecture: the description.
        remarks: lines to put before it as comments.
    """
    constant = _constant(architecture.name)
    body = _value(architecture, 0, len(constant) + 3)
    used = sorted(_types(architecture), key=lambda name: (not name.isupper(), name))
    comments = "".join(f"# {line}\n" for line in remarks)
    return (
        f'"""{architecture.classes[0]}: derived from its behaviour."""\n\n'
        f"{_import(used)}\n\n{comments}{constant} = {body}\n\nARCHITECTURES = ({constant},)\n"
    )


def _constant(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).upper()


def _import(names: list[str]) -> str:
    line = f"from lensbridge.spec import {', '.join(names)}"
    if len(line) <= _WIDTH:
        return line
    listed = "".join(f"    {name},\n" for name in names)
    return f"from lensbridge.spec import (\n{listed})"


def _types(value: Any) -> set[str]:
    if isinstance(value, tuple):
        return {name for one in value for name in _types(one)}
    if not is_dataclass(value):
        return set()
    shown = (getattr(value, one.name) for one in _shown(value))
    return {type(value).__name__}.union(*(_types(one) for one in shown))


def _shown(value: Any) -> list[Field[Any]]:
    """The fields without their default value; those with a name or path come first."""
    found = [one for one in fields(value) if not _is_default(one, getattr(value, one.name))]
    return sorted(found, key=_place) if isinstance(value, Stack) else found


def _place(one: Field[Any]) -> int:
    return _ORDER.index(one.name) if one.name in _ORDER else len(_ORDER)


def _is_default(one: Field[Any], value: Any) -> bool:
    if one.default is not MISSING:
        return bool(value == one.default)
    return one.default_factory is not MISSING and bool(value == one.default_factory())


def _value(value: Any, indent: int, before: int) -> str:
    """A value as source, on one line if it fits after `before` characters."""
    flat = _flat(value)
    if indent + before + len(flat) + 1 <= _WIDTH or not _breaks(value):
        return flat
    inner = indent + 4
    pad = " " * inner
    if isinstance(value, str):
        pieces = _pieces(value, _WIDTH - inner - 8)
        return "(\n" + "".join(f"{pad}{_flat(one)}\n" for one in pieces) + f"{' ' * indent})"
    if isinstance(value, dict):
        entries = (
            f"{_flat(key)}: {_value(one, inner, len(key) + 4)}" for key, one in value.items()
        )
        return "{\n" + "".join(f"{pad}{one},\n" for one in entries) + f"{' ' * indent}}}"
    if isinstance(value, tuple):
        lines = [f"{pad}{_value(one, inner, 0)},\n" for one in value]
        return f"(\n{''.join(lines)}{' ' * indent})"
    lines = []
    for key, one in _arguments(value):
        said = f"{key}=" if key else ""
        lines.append(f"{pad}{said}{_value(one, inner, len(said))},\n")
    return f"{type(value).__name__}(\n{''.join(lines)}{' ' * indent})"


def _breaks(value: Any) -> bool:
    """Whether a value can be written on several lines."""
    return is_dataclass(value) or (isinstance(value, tuple | dict | str) and bool(value))


def _pieces(text: str, width: int) -> list[str]:
    """A text in pieces that are at most so wide in quotes, unless a word is wider."""
    return textwrap.wrap(text, width, drop_whitespace=False, break_long_words=False)


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flat(key)}: {_flat(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        inside = ", ".join(_flat(one) for one in value)
        return f"({inside}{',' if len(value) == 1 else ''})"
    if is_dataclass(value):
        said = (f"{key}={_flat(one)}" if key else _flat(one) for key, one in _arguments(value))
        return f"{type(value).__name__}({', '.join(said)})"
    return repr(value)


def _arguments(value: Any) -> list[tuple[str, Any]]:
    positional = _POSITIONAL.get(type(value).__name__, 0)
    names = [one.name for one in fields(value)][:positional]
    return [
        ("" if one.name in names else one.name, getattr(value, one.name)) for one in _shown(value)
    ]
