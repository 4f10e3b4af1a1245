"""Attributes that a class does not have: the error says what to write."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from lensbridge.errors import suggest

Instead: TypeAlias = Sequence[tuple[str, str]]
"""Pieces of code with what they do: `[("model.cfg", "has the sizes")]`."""

Table: TypeAlias = Mapping[str, Instead]
"""What to write, by the name that another library has."""


def entries(names: Iterable[str], said: Instead) -> dict[str, Instead]:
    """The same entry for several names."""
    return dict.fromkeys(names, said)


def instead(name: str, table: Table) -> str:
    """What to write for a name, as a sentence with a space in front; "" if the table lacks it.

    Example:
        >>> instead("config", {"config": [("model.cfg", "has the sizes")]})
        ' model.cfg has the sizes.'
    """
    if name not in table:
        return ""
    return " " + "; ".join(f"{code} {does}" for code, does in table[name]) + "."


class Hinted:
    """A class whose missing attributes say what to write instead."""

    _instead: ClassVar[Table] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            own = getattr(type(self), name, None)
            if isinstance(own, property):
                return own.fget(self)  # it raised; again, for its own message
            if isinstance(own, cached_property):
                return own.func(self)
            raise AttributeError(self._missing(name))

    def _missing(self, name: str) -> str:
        """What the error for an attribute says that there is not."""
        told = f"A {type(self).__name__} has no attribute {name!r}."
        return told if name.startswith("_") else f"{told}{self._hint(name)}"

    def _hint(self, name: str) -> str:
        """What to write instead, with a space in front."""
        public = [one for one in dir(type(self)) if not one.startswith("_")]
        return instead(name, self._instead) or suggest(name, public)
