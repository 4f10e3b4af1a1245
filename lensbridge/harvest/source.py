"""Source: documents that can be read again from any place in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Content: TypeAlias = "str | list[int] | list[dict[str, Any]]"
"""A document: text, token ids, or the messages of a chat."""


@dataclass(frozen=True)
class Place:
    """Where a document begins.

    Args:
        document: its number, from 0 over all files.
        file: the number of its file.
        offset: where it begins in there, in the unit of the source (bytes, rows).
    """

    document: int = 0
    file: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Document:
    """One document.

    Args:
        content: what is in it; empty where there is nothing to run.
        place: where it begins.
        after: where the next one begins.
    """

    content: Content
    place: Place
    after: Place


class Source(Protocol):
    """Documents in a fixed order."""

    def documents(self, start: Place) -> Iterator[Document]:
        """The documents from a place on, one after another.

        Raises:
            InputError: one cannot be read, with its number.
        """

    def share(self, place: Place) -> float | None:
        """How much of the data is before a place, from 0 to 1; None: that is not known."""

    def fingerprint(self) -> dict[str, Any]:
        """By what the source is recognised when a harvest is resumed, without reading all of it."""
