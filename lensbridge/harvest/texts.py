"""Texts of a file, one for each line, with the place in the file after each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lensbridge.errors import InputError, suggest

_ENDS = 2**20
"""Bytes at each end of a file by which it is recognised."""


@dataclass(frozen=True)
class Line:
    """One text.

    Args:
        text: without its line break.
        number: of the line, from 0.
        offset: where the line begins in the file, in bytes.
        next: where the next line begins.
    """

    text: str
    number: int
    offset: int
    next: int


@dataclass(frozen=True)
class TextFile:
    """A file of texts: a text for each line, or in `.jsonl` an object for each line.

    Args:
        path: the file, in UTF-8.
        field: the field of an object that has its text.
    """

    path: Path
    field: str = "text"

    def lines(self, offset: int = 0, number: int = 0) -> Iterator[Line]:
        """The texts from a place in the file on; one line is in memory at a time.

        Raises:
            InputError: a line is not UTF-8, or not an object with a text.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            for raw in file:
                yield Line(self._text(raw, number), number, offset, offset + len(raw))
                number, offset = number + 1, offset + len(raw)

    def _text(self, raw: bytes, number: int) -> str:
        try:
            text = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"Line {number + 1} of {self.path} is not UTF-8: {error}.") from error
        return self._of_object(text, number) if self.path.suffix == ".jsonl" else text

    def _of_object(self, text: str, number: int) -> str:
        where = f"Line {number + 1} of {self.path}"
        if not text.strip():
            return ""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}.") from error
        if not isinstance(found, dict) or not isinstance(found.get(self.field), str):
            known = list(found) if isinstance(found, dict) else []
            raise InputError(
                f"{where} has no text in a field {self.field!r}; its fields are {known}."
                f"{suggest(self.field, known)}"
            )
        return str(found[self.field])

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def fingerprint(self) -> str:
        """A hash of the size and of both ends of the file, by which it is recognised later."""
        found = sha256(str(self.size).encode())
        with self.path.open("rb") as file:
            found.update(file.read(_ENDS))
            file.seek(max(0, self.size - _ENDS))
            found.update(file.read(_ENDS))
        return found.hexdigest()
