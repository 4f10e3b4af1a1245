"""What is printed: results on standard output, everything else on standard error."""

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ENDLESS = 100_000
"""Columns of output that goes to a file or a pipe, where nothing has to be cut."""


def console(error: bool = False) -> "Console":
    """A console of rich that takes text literally: no markup, no emoji codes, no highlighting.

    NO_COLOR, FORCE_COLOR and COLUMNS are respected. Colours and cut lines are for terminals only.
    """
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    if not (stream.encoding or "").lower().startswith("utf") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # tokens may be in any script
    fixed = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        file=stream,
        width=None if fixed else _ENDLESS,
        markup=False,
        emoji=False,
        highlight=False,
    )


def show(*parts: "RenderableType") -> None:
    """Print results one below the other."""
    out = console()
    for part in parts:
        out.print(part, soft_wrap=isinstance(part, str))


def note(text: str) -> None:
    """Tell something that is not a result."""
    console(error=True).print(printable(text), soft_wrap=True)


def show_json(value: Any) -> None:
    """Print a value as JSON. Tensors become lists; what is not a number becomes null."""
    print(json.dumps(as_plain(value), indent=2, allow_nan=False))


def as_plain(value: Any) -> Any:
    """A value of tensors, mappings and lists as JSON can hold it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def printable(text: str) -> str:
    """Text without signs that would steer the terminal; line breaks stay.

    Example:
        >>> printable("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )
