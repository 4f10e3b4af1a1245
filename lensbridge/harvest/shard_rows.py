"""ShardRows: which rows are in which shard. A shard's rows depend on the harvest alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lensbridge.errors import InputError
from lensbridge.harvest.packing import Cut, Packer, Row


@dataclass
class ShardRows:
    """The rows of shards, read one after another, or from a place that is known.

    Args:
        packer: makes the rows.
        shard_tokens: tokens of a shard at most; a shard has one row at least.
        max_tokens: the last row is the one with which so many tokens are reached; None: no limit.
        cuts: the number of a shard -> where it begins.
    """

    packer: Packer
    shard_tokens: int
    max_tokens: int | None = None
    cuts: dict[int, Cut] = field(default_factory=lambda: {0: Cut()})
    count: int | None = None
    _at: int = 0
    _stream: Iterator[Row] | None = None
    _next: Row | None = None

    def know(self, number: int, cut: Cut | None) -> None:
        """Note where a shard begins; None: there is no such shard, and none after it."""
        if cut is None:
            self.count = number if self.count is None else min(self.count, number)
        else:
            self.cuts[number] = cut

    def rows(self, number: int) -> list[Row]:
        """The rows of a shard; empty where the data ends before it.

        Where it begins is found by reading on from the last shard before it that is known.

        Raises:
            InputError: the data are shorter than they were.
        """
        if self.count is not None and number >= self.count:
            return []
        inside = number in self.cuts
        known = number if inside else max(one for one in self.cuts if one <= number)
        for earlier in range(known, number):
            if not self._read(earlier) or (self.count is not None and number >= self.count):
                return []
        return self._read(number)

    def after(self, number: int) -> Cut | None:
        """Where the shard after this one begins, once this one was read; None: it is the last."""
        return self.cuts.get(number + 1)

    def all_cuts(self) -> dict[int, Cut]:
        """Where every shard begins. Documents are read and tokenized where that is not known."""
        number = 0
        while self.count is None or number + 1 < self.count:
            if number + 1 not in self.cuts:
                self._read(number)
            number += 1
        return {number: cut for number, cut in self.cuts.items() if number < self.count}

    def require_some(self) -> None:
        """Require that the data have a row, once the first shard was read.

        Raises:
            InputError: they are empty, or all documents are blank.
        """
        if self.count == 0:
            raise InputError("The data have no tokens: there is no document, or all are blank.")

    def _read(self, number: int) -> list[Row]:
        if self._stream is None or self._at != number:
            self._stream = self.packer.rows(self.cuts[number])
            self._next = next(self._stream, None)
        found, tokens = list[Row](), 0
        while self._next is not None and (
            not found or tokens + len(self._next.ids) <= self.shard_tokens
        ):
            if self._enough(self._next):
                self._next = None
                break
            found.append(self._next)
            tokens += len(self._next.ids)
            self._next = next(self._stream, None)
        if self._next is not None and self._enough(self._next):
            self._next = None
        self._at = number + 1
        self.know(number + 1, None if self._next is None else self._next.start)
        if not found:
            self._require_none(number)
            self.know(number, None)
        return found

    def _require_none(self, number: int) -> None:
        """Require that no row was known to be where none is.

        Raises:
            InputError: the data end before a shard that had begun in them.
        """
        if number:
            raise InputError(
                f"The data end before document {self.cuts[number].place.document}, with which "
                f"shard {number} began when they were read before: they have become shorter, or "
                "cannot be read a second time. Pass the same data."
            )

    def _enough(self, row: Row) -> bool:
        return self.max_tokens is not None and row.start.tokens >= self.max_tokens


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows in groups that run together, in order."""
    listed = list(rows)
    return (listed[i : i + size] for i in range(0, len(listed), size))
