"""Functions of a user's own by name: interventions that call them can be written to files."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from lensbridge.errors import InputError, suggest

EditFunction: TypeAlias = Callable[[Tensor], Tensor | None]
"""`f(value)`: gives the new value, of the same shape, or edits it in place and gives None."""

_KNOWN: dict[str, EditFunction] = {}


def register_function(name: str) -> Callable[[EditFunction], EditFunction]:
    """Give a function a name, under which `Apply` finds it and by which it is written to files.

    A program that reads such a file registers the function too, before it reads the file.

    Args:
        name: any text; the name of another function is refused.

    Raises:
        InputError: the name is that of another function, or what gets it is no function.

    Example:
        >>> from lensbridge.interventions import Apply, from_json, register_function, to_json
        >>> @register_function("clip to one")
        ... def clip(value):
        ...     return value.clamp(-1, 1)
        >>> text = to_json(Apply(("mlp_out", 1), clip, positions=-1))
        >>> from_json(text)[0]
        Apply(('mlp_out', 1), positions=-1, fn='clip to one')
    """

    def register(fn: EditFunction) -> EditFunction:
        if not callable(fn):
            raise InputError(f"A function gets the name {name!r}, not a {type(fn).__name__}.")
        other = _KNOWN.get(name)
        if other is not None and _identity(other) != _identity(fn):
            raise InputError(
                f"{name!r} is the name of {_identity(other)} already. Choose another name."
            )
        _KNOWN[name] = fn
        return fn

    if not isinstance(name, str) or not name:
        raise InputError('Write @register_function("a name") above the function.')
    return register


def function_of(name: str) -> EditFunction:
    """The function of a name.

    Raises:
        InputError: no function has it.
    """
    if name not in _KNOWN:
        raise InputError(
            f"No function is registered as {name!r}.{suggest(name, _KNOWN)} Import the module that "
            'registers it, or write @register_function("...") above it, first.'
        )
    return _KNOWN[name]


def name_of(fn: Any) -> str | None:
    """The name of a function; None if it has none."""
    return next((name for name, known in _KNOWN.items() if known is fn), None)


def _identity(fn: EditFunction) -> str:
    """Where a function is written; a cell of a notebook that runs again writes the same one."""
    return f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', repr(fn))}"
