"""Objects in memory as sources: lists, datasets, tensors of ids, iterables that begin anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

from lensbridge.errors import InputError
from lensbridge.harvest.records import content_of
from lensbridge.harvest.source import Document, Place

_SAMPLES = 64
"""How many documents of a sequence, evenly spaced, are hashed to recognise it."""


def _content(get: Callable[[], Any], field: str, number: int) -> Any:
    where = f"Document {number}"
    try:
        record = get()
    except StopIteration:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    return content_of(record, field, where)


def _hash(contents: Iterable[Any]) -> str:
    found = sha256()
    for one in contents:
        found.update(repr(one).encode())
    return found.hexdigest()


@dataclass(frozen=True)
class Indexed:
    """What has a length and can be read at any index.

    Args:
        data: a list, a `datasets.Dataset`, a tensor of ids `[row, pos]`, ...
        field: the field of the text in its records.
    """

    data: Any
    field: str

    def documents(self, start: Place) -> Iterator[Document]:
        """The documents from a place on.

        Raises:
            InputError: one cannot be read.
        """
        for number in range(start.document, len(self.data)):
            content = self._at(number)
            yield Document(content, Place(number), Place(number + 1))

    def _at(self, number: int) -> Any:
        return _content(lambda: self.data[number], self.field, number)

    def share(self, place: Place) -> float | None:
        """The part of all documents that is before a place."""
        return place.document / max(1, len(self.data))

    def fingerprint(self) -> dict[str, Any]:
        """How many documents there are, and a hash of some of them."""
        count = len(self.data)
        sampled = range(0, count, max(1, count // _SAMPLES))
        return {
            "documents": count,
            "field": self.field,
            "sha256_of_some": _hash(self._at(number) for number in sampled),
        }


@dataclass(frozen=True)
class Streamed:
    """What can be read from its beginning only, but as often as one likes.

    Args:
        data: an iterable, or a function that returns one.
        field: the field of the text in its records.
    """

    data: Any
    field: str

    def documents(self, start: Place) -> Iterator[Document]:
        """The documents from a place on; those before are read and dropped.

        Raises:
            InputError: one cannot be read.
        """
        records = iter(self._from(start.document))
        number = start.document
        while True:
            try:
                content = _content(lambda: next(records), self.field, number)
            except StopIteration:
                return
            yield Document(content, Place(number), Place(number + 1))
            number += 1

    def _from(self, number: int) -> Iterable[Any]:
        data = self.data() if callable(self.data) else self.data
        skip = getattr(data, "skip", None)  # datasets.IterableDataset
        if number and callable(skip):
            skipped: Iterable[Any] = skip(number)
            return skipped
        return islice(iter(data), number, None)

    def share(self, place: Place) -> float | None:
        """It is not known how much there is."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """A hash of the first documents."""
        first = islice(self.documents(Place()), _SAMPLES)
        return {"field": self.field, "sha256_of_first": _hash(one.content for one in first)}


def as_source(data: Any, field: str) -> Indexed | Streamed:
    """A source of what is in memory.

    Raises:
        InputError: it is not a collection of documents, or can be read only once.
    """
    if isinstance(data, Mapping):
        names = ", ".join(map(repr, list(data)[:5]))
        raise InputError(
            f"data is a {type(data).__name__} of {names}, and iterating over it gives its keys. "
            "Pass one of its values, such as data['train'] of several splits."
        )
    if isinstance(data, Sized) and hasattr(data, "__getitem__"):
        return Indexed(data, field)
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a {type(data).__name__}, which can be read only once, and a harvest that is "
            "resumed reads it again. Pass a list, a dataset, a file, or the function that makes it."
        )
    if isinstance(data, Iterable) or callable(data):
        return Streamed(data, field)
    raise InputError(
        f"data is {data!r:.60}, of type {type(data).__name__}. Pass files, a list or a dataset of "
        "texts, rows of ids, or an iterable of them."
    )
