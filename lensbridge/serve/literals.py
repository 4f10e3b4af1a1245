"""Values as they are written in Python."""

from typing import Any


def literal(value: Any) -> str:
    """A value as Python. Characters that cannot be seen are escaped.

    Example:
        >>> literal("a text"), literal(("z", 2)), literal([1, 2])
        ('"a text"', '("z", 2)', '[1, 2]')
    """
    if isinstance(value, str):
        return repr(value) if set(value) & set("'\"") else f'"{repr(value)[1:-1]}"'
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)
