"""Calls of torch as Python text."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from lensbridge.errors import UnsupportedError

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "matmul": "@",
    "gt": ">",
    "lt": "<",
    "ge": ">=",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
    "__eq__": "==",
    "__ne__": "!=",
    "__pow__": "**",
    "__and__": "&",
    "__or__": "|",
}
_PREFIX = {"neg": "-", "__invert__": "~"}
_IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or")}
_METHODS = "torch.Tensor."


def call_of(func: Callable[..., Any], args: Sequence[str], kwargs: Mapping[str, str]) -> str:
    """A call of a function or method of torch, as text.

    Args:
        func: what `__torch_function__` is given.
        args: its arguments as text; an index is written as in brackets.
        kwargs: its keywords as text.

    Raises:
        UnsupportedError: it has no public name.
    """
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return f"{args[0]}.{_attribute(func)}"
    full = resolve_name(func) or ""
    if full.startswith(_METHODS):
        return _method(name, args, kwargs)
    return f"{_public(func, full)}({_listed(args, kwargs)})"


def statement_of(func: Callable[..., Any], args: Sequence[str]) -> str | None:
    """A call that returns nothing, as a statement; None if it is none of these."""
    if getattr(func, "__name__", "") == "__setitem__":
        return f"{args[0]}[{args[1]}] = {args[2]}"
    return None


def writes(func: Callable[..., Any]) -> bool:
    """Whether a call changes its first argument."""
    name = getattr(func, "__name__", "")
    plain = name.endswith("_") and not name.endswith("__")
    return (
        plain
        or name in ("__setitem__", "__set__")
        or (name.startswith("__i") and name != "__invert__")
    )


def is_index(func: Callable[..., Any]) -> bool:
    """Whether the second argument of a call is an index in brackets."""
    return getattr(func, "__name__", "") in ("__getitem__", "__setitem__")


def _method(name: str, args: Sequence[str], kwargs: Mapping[str, str]) -> str:
    if name == "__getitem__":
        return f"{args[0]}[{args[1]}]"
    if name in _INFIX and len(args) == 2 and not kwargs:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if name == "__rsub__":
        return f"{args[1]} - {args[0]}"
    if name in _PREFIX and len(args) == 1:
        return f"{_PREFIX[name]}{args[0]}"
    return f"{args[0]}.{name}({_listed(args[1:], kwargs)})"


def _listed(args: Sequence[str], kwargs: Mapping[str, str]) -> str:
    return ", ".join([*args, *(f"{key}={value}" for key, value in kwargs.items())])


def _attribute(func: Any) -> str:
    return str(func.__self__.__name__)


def _public(func: Callable[..., Any], full: str) -> str:
    """A name under which anyone who imports torch finds the function."""
    own = f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', '')}"
    for name in (full, own):
        first, *rest = name.split(".")
        if first != "torch" or any(part.startswith("_") for part in rest):
            continue
        if _found(rest) is func:
            return name
    raise UnsupportedError(
        f"A trace has only public functions of torch, and {own} is none: the server may lack it."
    )


def _found(path: Sequence[str]) -> Any:
    """What is at a path inside of torch, or None."""
    at: Any = torch
    for part in path:
        at = getattr(at, part, None)
    return at


def literal(value: Any, tensor: Callable[[Tensor], str], device: str) -> str:
    """A value as text.

    Args:
        value: an argument of a call.
        tensor: the text of a tensor.
        device: the text of any device: that of the server, not of this machine.

    Raises:
        UnsupportedError: it is neither data nor a tensor.
    """
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, torch.device):
        return device
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if value is None or value is ... or isinstance(value, bool | str):
        return "..." if value is ... else repr(value)
    if isinstance(value, float):
        return repr(value) if abs(value) < float("inf") else f'float("{value}")'
    if isinstance(value, Integral):
        return repr(int(value))
    return _nested(value, lambda one: literal(one, tensor, device))


def _nested(value: Any, text: Callable[[Any], str]) -> str:
    if isinstance(value, slice):
        return f"slice({text(value.start)}, {text(value.stop)}, {text(value.step)})"
    if isinstance(value, tuple):
        inside = ", ".join(map(text, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{text(k)}: {text(v)}' for k, v in value.items())}}}"
    raise UnsupportedError(
        f"A trace has data and tensors, and a {type(value).__name__} is neither, so it cannot be "
        "sent to the server."
    )


def index(value: Any, tensor: Callable[[Tensor], str], device: str) -> str:
    """An index as it stands in brackets: `:, 2`."""
    parts = value if isinstance(value, tuple) else (value,)
    if not parts:
        return "()"
    return ", ".join(_part(one, tensor, device) for one in parts) + ("," if _is_one(value) else "")


def _is_one(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 1


def _part(one: Any, tensor: Callable[[Tensor], str], device: str) -> str:
    if not isinstance(one, slice):
        return literal(one, tensor, device)
    start, stop = ("" if end is None else repr(int(end)) for end in (one.start, one.stop))
    return f"{start}:{stop}" + ("" if one.step is None else f":{int(one.step)}")
