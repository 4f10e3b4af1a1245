"""Whether each field of a description has a value that the vocabulary allows.

The annotations of `lensbridge.spec` say which: this module has no list of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from weakref import WeakValueDictionary

from lensbridge.errors import ArchitectureMismatchError, InputError, suggest
from lensbridge.spec import Architecture
from lensbridge.spec.words import Omitted


def require_vocabulary(architecture: Architecture, source: str) -> None:
    """Require that a description says only what can be said.

    Args:
        architecture: the description.
        source: where it comes from, for messages.

    Raises:
        InputError: it is no description.
        ArchitectureMismatchError: a field has a value that is not understood.
    """
    require_description(architecture)
    if _understood.get(id(architecture)) is architecture:
        return
    fault = next(_faults(architecture, Architecture, ""), None)
    if fault is not None:
        raise ArchitectureMismatchError(
            f"Architecture '{architecture.name}' (from {source}) cannot be read: {fault}"
        )
    _understood[id(architecture)] = architecture


def require_description(given: object) -> None:
    """Require a description.

    Raises:
        InputError: it is something else, such as the name of one.
    """
    if not isinstance(given, Architecture):
        shown = f"{given!r}, a str" if isinstance(given, str) else f"a {type(given).__name__}"
        raise InputError(
            f"architecture was given {shown}. It takes a description, an Architecture of "
            "lensbridge.spec; those of lensbridge_adapters can be imported. Without it the "
            "registered one for the model's class is used."
        )


_understood: WeakValueDictionary[int, Architecture] = WeakValueDictionary()
"""Descriptions that were looked at: they are frozen, and a process loads many models with one."""


def _faults(value: Any, allowed: Any, at: str) -> Iterator[str]:
    """What is not understood in the value of a field, and in the values inside it."""
    kinds = _alternatives(allowed)
    kind = next((one for one in kinds if _is(value, one)), None)
    if kind is None:
        yield f"{at}{_refused(value)} {_named(kinds)}.{_similar(value, kinds)}"
    elif is_dataclass(value) and not isinstance(value, type):
        for name, inner in _hints(type(value)):
            yield from _faults(getattr(value, name), inner, f"{at}.{name}" if at else name)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _faults(item, get_args(kind)[0], f"{at}[{index}]")
    elif isinstance(value, Mapping):
        yield from _of_mapping(value, get_args(kind)[1], at)


def _refused(value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return f"={value!r} is not understood: it is"
    return f" is {_a(type(value).__name__)}, and has to be"


def _of_mapping(value: Mapping[Any, Any], allowed: Any, at: str) -> Iterator[str]:
    keys = get_args(Omitted)
    for key, item in value.items():
        if at == "undescribed" and key not in keys:
            known = _listed([repr(one) for one in keys])
            yield f"undescribed has {key!r}, and its keys are {known}.{suggest(str(key), keys)}"
        yield from _faults(item, allowed, f"{at}[{key!r}]")


@cache
def _hints(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    found = get_type_hints(cls)
    return tuple((one.name, found[one.name]) for one in fields(cls))


@cache
def _alternatives(allowed: Any) -> tuple[Any, ...]:
    union = get_origin(allowed) in (Union, UnionType)
    return get_args(allowed) if union else (allowed,)


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(value, bool):
        return kind is bool or kind is object
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or kind)


def _named(kinds: tuple[Any, ...]) -> str:
    """`'LN' or 'RMS'`, `a str or an int`, `a SplitQKV or a FusedQKV`."""
    return _listed([word for kind in kinds for word in _words(kind)])


def _words(kind: Any) -> list[str]:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [repr(one) for one in inside]
    if origin is tuple:
        return [f"a tuple of which each element is {_named(_alternatives(inside[0]))}"]
    if origin is not None:
        return [f"a mapping to {_named(_alternatives(inside[1]))}"]
    return [_PLAIN.get(kind) or _a(kind.__name__)]


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeio' or noun.startswith('ML') else 'a'} {noun}"


_PLAIN = {float: "a number", bool: "True or False", type(None): "None"}


def _listed(words: list[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _similar(value: Any, kinds: tuple[Any, ...]) -> str:
    known = [one for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]
    if not isinstance(value, str) or not known:
        return f" For one, write ({value!r},)." if _lacks_comma(value, kinds) else ""
    longer = [one for one in known if value and one.startswith(value)]
    return f" Did you mean {longer[0]!r}?" if longer else suggest(value, known)


def _lacks_comma(value: Any, kinds: tuple[Any, ...]) -> bool:
    return isinstance(value, str) and any(get_origin(kind) is tuple for kind in kinds)
