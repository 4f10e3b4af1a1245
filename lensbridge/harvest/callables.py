"""By what functions, and the values that they use, are recognised when work is gone on with."""

from __future__ import annotations

import builtins
import dis
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lensbridge.errors import InputError
from lensbridge.harvest.identity import of_model, of_module, of_tensor, of_tokenizer
from lensbridge.hooked_model import HookedModel

_INSTALLED = tuple(
    str(Path(str(path)).resolve())
    for path in (
        *(sysconfig.get_paths()[one] for one in ("purelib", "platlib", "stdlib")),
        Path(__file__).parents[1],
    )
)
"""Where code lies that is recognised by its name."""

_TOLD = (type(None), bool, int, str)
"""What is JSON itself."""

_REPEATED = (float, complex, bytes, type(Ellipsis), slice, range, Enum, PurePath, torch.dtype)
"""What its `repr` says all of."""

_NAMED = (ModuleType, type, BuiltinFunctionType)
"""What is recognised by its name."""


@dataclass
class Recogniser:
    """Describes functions and values as JSON, so that a change of either shows.

    Of a function this is its name, a hash of its code, and what it uses: defaults, enclosed values
    and globals. Of a function of an installed library, which has a version, it is the name with
    the enclosed values.

    Args:
        what: what it describes, for errors.
    """

    what: str
    _under_way: list[int] = field(default_factory=list)

    def of(self, value: Any, path: str = "") -> Any:
        """A value as JSON.

        Raises:
            InputError: it is an object of which it cannot be told whether it changed.
        """
        if id(value) in self._under_way:
            return "itself"  # a function that calls itself, or a list that holds itself
        self._under_way.append(id(value))
        try:
            return self._of(value, path)
        finally:
            self._under_way.pop()

    def _of(self, value: Any, path: str) -> Any:
        if isinstance(value, _TOLD):
            return value
        if isinstance(value, _REPEATED):
            return repr(value)
        if isinstance(value, _NAMED):
            return _name(value)
        if isinstance(value, (HookedModel, nn.Module, PreTrainedTokenizerBase)):
            return _of_large(value)
        if hasattr(value, "__array__"):
            return of_tensor(value)
        if isinstance(value, (Mapping, Set, list, tuple)):
            return self._of_several(value, path)
        if callable(value):
            return self._of_callable(value, path)
        if is_dataclass(value):
            return {"class": _name(type(value)), "has": self._of_fields(value, path)}
        raise InputError(
            f"{self.what} uses {path.lstrip('.') or 'an object'}, of type "
            f"{type(value).__name__}, and nothing tells whether that is the same in another "
            "process. Pass identity='...', a text that you change when the metric or the cells "
            "change; or pass the numbers that are needed instead of the object."
        )

    def _of_several(self, value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {str(key): self.of(one, f"{path}[{key!r}]") for key, one in value.items()}
        if isinstance(value, Set):
            return sorted(repr(self.of(one, path)) for one in value)
        return [self.of(one, f"{path}[{i}]") for i, one in enumerate(value)]

    def _of_fields(self, value: Any, path: str) -> dict[str, Any]:
        """What the fields of an object are, of a dataclass or of any other class."""
        if is_dataclass(value):
            held = {one.name: getattr(value, one.name) for one in fields(value)}
        else:
            held = getattr(value, "__dict__", {})
        return {name: self.of(one, f"{path}.{name}") for name, one in held.items()}

    def _of_callable(self, value: Callable[..., Any], path: str) -> Any:
        if isinstance(value, partial):
            inner = self.of(value.func, path)
            if not value.args and not value.keywords:
                return inner
            return {"function": inner, "with": self.of([*value.args, value.keywords], path)}
        if isinstance(value, MethodType):
            of = self.of(value.__self__, f"{path}.self")
            return {"method": self.of(value.__func__, path), "of": of}
        if isinstance(value, FunctionType):
            return self._of_function(value, path)
        if not isinstance(type(value).__call__, FunctionType):
            return _name(value)
        does = {name: self.of(one, path) for name, one in _methods(type(value)).items()}
        has = self._of_fields(value, path)
        return {"class": _name(type(value)), "does": does, "has": has}

    def _of_function(self, function: FunctionType, path: str) -> Any:
        code = function.__code__
        installed = str(Path(code.co_filename).resolve()).startswith(_INSTALLED)
        if installed and "<locals>" not in function.__qualname__:
            return _name(function)
        values = _enclosed(function) if installed else _used(function)
        used = {name: self.of(one, f"{path}.{name}") for name, one in values}
        if installed:
            return {"function": _name(function), "uses": used}
        hashed = sha256(_text(code).encode()).hexdigest()
        return {"function": function.__qualname__, "code": hashed, "uses": used}


def _of_large(value: Any) -> Any:
    """What a model, a module or a tokenizer is recognised by."""
    if isinstance(value, HookedModel):
        return of_model(value)
    return of_module(value) if isinstance(value, nn.Module) else of_tokenizer(value)


def _name(value: Any) -> str:
    """The name of a module, a class or a function of a library."""
    if isinstance(value, ModuleType):
        return value.__name__
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', None) or ''}.{name}"


def _text(code: CodeType) -> str:
    """What a piece of code does, without where it stands."""
    inner = [_text(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return f"{code.co_code.hex()} {names} {inner}"


def _constant(value: Any) -> str:
    ordered = isinstance(value, frozenset)
    return f"set {sorted(map(repr, value))}" if ordered else repr(value)


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values that a function finds outside of its arguments, with their names."""
    defaults = function.__defaults__ or ()
    yield from ((f"default {number}", one) for number, one in enumerate(defaults))
    yield from (function.__kwdefaults__ or {}).items()
    yield from _enclosed(function)
    for name in sorted(set(_globals_of(function.__code__))):
        if name in function.__globals__:
            yield name, function.__globals__[name]
        elif not hasattr(builtins, name):
            yield name, "nothing"


def _methods(kind: type) -> dict[str, FunctionType]:
    """What objects of a class do when they are called: their `__call__`, and what that may use."""
    return {
        name: one
        for owner in reversed(kind.__mro__)
        for name, one in vars(owner).items()
        if isinstance(one, FunctionType) and (name == "__call__" or not name.startswith("__"))
    }


def _enclosed(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values that a function keeps from where it was made, with their names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is still empty
            yield name, cell.cell_contents


def _globals_of(code: CodeType) -> Iterator[str]:
    """The names that code looks up among globals."""
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(one.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_of(inner)
