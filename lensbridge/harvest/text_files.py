"""Files of texts as sources: a text for each line, or an object for each line (`.jsonl`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lensbridge.errors import InputError
from lensbridge.harvest.records import content_of
from lensbridge.harvest.source import Content, Document, Place

_ENDS = 2**20
"""Bytes at each end of a file by which it is recognised."""


@dataclass(frozen=True)
class TextFiles:
    """Files with a document for each line; blank lines are documents with nothing to run.

    Args:
        paths: the files, in UTF-8, in order.
        field: the field of an object that has its text.
    """

    paths: Sequence[Path]
    field: str = "text"

    def documents(self, start: Place) -> Iterator[Document]:
        """The documents from a place on; one line is in memory at a time.

        Raises:
            InputError: a line is not UTF-8, or not an object with a text.
        """
        number, offset = start.document, start.offset
        for file in range(start.file, len(self.paths)):
            with self.paths[file].open("rb") as lines:
                lines.seek(offset)
                for raw in lines:
                    where = f"Document {number} (in {self.paths[file]})"
                    place = Place(number, file, offset)
                    number, offset = number + 1, offset + len(raw)
                    content = self._content(raw, self.paths[file], where)
                    yield Document(content, place, Place(number, file, offset))
            offset = 0

    def _content(self, raw: bytes, path: Path, where: str) -> Content:
        try:
            text = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8: {error}.") from error
        if path.suffix != ".jsonl" or not text.strip():
            return text
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}.") from error
        return content_of(found, self.field, where)

    def share(self, place: Place) -> float | None:
        """The part of all bytes that is before a place."""
        sizes = [path.stat().st_size for path in self.paths]
        return (sum(sizes[: place.file]) + place.offset) / max(1, sum(sizes))

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and hashes of both ends of the files."""
        return {"files": [file_fingerprint(path) for path in self.paths], "field": self.field}


def file_fingerprint(path: Path) -> dict[str, Any]:
    """The name of a file, its size, and a hash of the size and of both ends."""
    size = path.stat().st_size
    found = sha256(str(size).encode())
    with path.open("rb") as file:
        found.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        found.update(file.read(_ENDS))
    return {"name": path.name, "bytes": size, "sha256_of_ends": found.hexdigest()}
