"""Packer: encoded documents to rows, each of which knows where the next one begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lensbridge.harvest.encoding import Coded
from lensbridge.harvest.source import Place
from lensbridge.harvest.spec import Packing


@dataclass(frozen=True)
class Cut:
    """Where a row begins: a row number, a document and a token of it.

    Args:
        row: the number of the row, from 0 in the whole harvest.
        place: the document.
        token: how many of its tokens (with the separator after it) were in earlier rows.
        tokens: how many tokens all earlier rows have.
    """

    row: int = 0
    place: Place = field(default_factory=Place)
    token: int = 0
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Cut:
        """What `to_dict` gave."""
        return cls(**{**given, "place": Place(**given["place"])})


@dataclass
class Row:
    """Tokens that are run together.

    Args:
        start: where it begins.
        after: where the next row begins.
        ids: the tokens.
        documents: for each token the number of its document; -1 for BOS in front of joined
            documents.
    """

    start: Cut
    after: Cut
    ids: list[int]
    documents: list[int]


@dataclass(frozen=True)
class Packer:
    """Makes rows of documents.

    Args:
        read: the encoded documents from a place on.
        packing: how.
        length: tokens of a row at most.
        bos: what rows of text begin with, or None.
        always: whether rows of ids and of chats begin with it as well.
        separator: what stands after each document in "concat", or None.
    """

    read: Callable[[Place], Iterator[Coded]]
    packing: Packing
    length: int
    bos: int | None
    always: bool
    separator: int | None

    def rows(self, start: Cut) -> Iterator[Row]:
        """The rows from a place on."""
        return self._joined(start) if self.packing == "concat" else self._apart(start)

    def _first(self, one: Coded, done: int) -> list[int]:
        """BOS for a row that begins at a token of a document, unless that is a BOS of its own."""
        if self.bos is None or (one.own_start and not self.always):
            return []
        return [] if done == 0 and one.ids[0] == self.bos else [self.bos]

    def _apart(self, start: Cut) -> Iterator[Row]:
        """Rows that do not cross documents."""
        at = start
        for one in self.read(start.place):
            number = one.document.place.document
            done = at.token if one.document.place == at.place else 0
            while done < len(one.ids):
                first = self._first(one, done) if done == 0 or self.packing == "document" else []
                taken = one.ids[done : done + self.length - len(first)]
                done += len(taken)
                whole = self.packing == "pad" or done >= len(one.ids)
                size = len(first) + len(taken)
                after = Cut(
                    at.row + 1,
                    one.document.after if whole else one.document.place,
                    0 if whole else done,
                    at.tokens + size,
                )
                yield Row(at, after, first + taken, [number] * size)
                at = after
                if whole:
                    break

    def _joined(self, start: Cut) -> Iterator[Row]:
        """Rows of one length; only the last one of all is shorter."""
        at, ids, documents, end = start, list[int](), list[int](), start.place
        begun: list[int] = []
        for one in self.read(start.place):
            place, number = one.document.place, one.document.place.document
            stream = one.ids if self.separator is None else [*one.ids, self.separator]
            done = start.token if place == start.place else 0
            end = one.document.after
            while done < len(stream):
                if not ids:
                    begun = self._first(one, done)
                    ids, documents = list(begun), [-1] * len(begun)
                taken = stream[done : done + self.length - len(ids)]
                ids, documents = ids + taken, documents + [number] * len(taken)
                done += len(taken)
                if len(ids) == self.length:
                    whole = done == len(stream)
                    next_place, token = (end, 0) if whole else (place, done)
                    after = Cut(at.row + 1, next_place, token, at.tokens + len(ids))
                    yield Row(at, after, ids, documents)
                    at, ids, documents = after, [], []
        if len(ids) > len(begun):
            yield Row(at, Cut(at.row + 1, end, 0, at.tokens + len(ids)), ids, documents)
