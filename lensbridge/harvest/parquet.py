"""Parquet files as sources, by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.records import content_of
from lensbridge.harvest.source import Document, Place
from lensbridge.harvest.text_files import file_fingerprint


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "Parquet files need pyarrow: pip install 'lensbridge[datasets]'."
        ) from error
    return pyarrow.parquet


@dataclass(frozen=True)
class ParquetFiles:
    """Files of records.

    Args:
        paths: the files, in order.
        field: the column of the text, or of ids.
    """

    paths: Sequence[Path]
    field: str

    def documents(self, start: Place) -> Iterator[Document]:
        """The documents from a place on; groups of rows before it are not read.

        Raises:
            InputError: a file has no such column, or a document cannot be read.
        """
        number, offset = start.document, start.offset
        for file in range(start.file, len(self.paths)):
            for content in self._contents(self.paths[file], offset, number):
                place = Place(number, file, offset)
                number, offset = number + 1, offset + 1
                yield Document(content, place, Place(number, file, offset))
            offset = 0

    def _contents(self, path: Path, first: int, number: int) -> Iterator[Any]:
        opened = pyarrow_parquet().ParquetFile(path)
        names = opened.schema_arrow.names
        if self.field not in names:
            raise InputError(
                f"{path} has no column {self.field!r}; it has {', '.join(names)}."
                f"{suggest(self.field, names)} Name it: field=..."
            )
        for group in range(opened.num_row_groups):
            size = opened.metadata.row_group(group).num_rows
            if first >= size:
                first -= size
                continue
            column = opened.read_row_group(group, columns=[self.field])[self.field]
            for value in column.slice(first):
                yield content_of(value.as_py(), self.field, f"Document {number} (in {path})")
                number += 1
            first = 0

    def share(self, place: Place) -> float | None:
        """The part of all documents that is before a place."""
        return place.document / max(1, self._count)

    @cached_property
    def _count(self) -> int:
        read = pyarrow_parquet().read_metadata
        return sum(read(path).num_rows for path in self.paths)

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and hashes of both ends of the files."""
        return {"files": [file_fingerprint(path) for path in self.paths], "field": self.field}
