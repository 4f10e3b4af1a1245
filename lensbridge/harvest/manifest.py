"""Shard: a line of a manifest, which says that a shard is finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lensbridge.harvest.journal import append, lines
from lensbridge.harvest.packing import Cut


@dataclass(frozen=True)
class Shard:
    """A finished shard, as its line in a manifest says.

    Args:
        number: from 0.
        tokens: entries of each tensor.
        run: tokens that were run for it.
        rows: rows that were run for it.
        documents: the first and the last document in it; -1, -1 if it has none.
        bytes: size of its file.
        crc32: checksum of its file.
        start: where it begins.
        after: where the next shard begins; None if this is the last.
    """

    number: int
    tokens: int
    run: int
    rows: int
    documents: tuple[int, int]
    bytes: int
    crc32: str
    start: dict[str, Any]
    after: dict[str, Any] | None

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return file_of(self.number)

    def cuts(self) -> tuple[Cut, Cut | None]:
        """Where it begins, and where the next one does."""
        return Cut.from_dict(self.start), None if self.after is None else Cut.from_dict(self.after)


def file_of(number: int) -> str:
    """The name of the file of a shard."""
    return f"shard-{number:06d}.safetensors"


def read(path: Path) -> Iterator[Shard]:
    """The shards that a manifest has."""
    for line in lines(path):
        try:
            yield Shard(**{**line, "documents": tuple(line["documents"])})
        except (TypeError, KeyError):
            continue  # cut off by a crash, and yet JSON


def note(path: Path, shard: Shard) -> None:
    """Add a line to a manifest, and bring it to the disk."""
    append(path, asdict(shard))
