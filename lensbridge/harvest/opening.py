"""open_source: the source that the data of a harvest is."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from os import PathLike
from pathlib import Path
from typing import Any

from lensbridge.errors import InputError
from lensbridge.harvest.parquet import ParquetFiles
from lensbridge.harvest.sequences import as_source
from lensbridge.harvest.source import Source
from lensbridge.harvest.text_files import TextFiles

_TEXT = (".txt", ".jsonl")
_KNOWN = (*_TEXT, ".parquet")


def open_source(data: Any, field: str) -> Source:
    """The source that some data is.

    Args:
        data: a path, a glob or several paths; or anything that holds documents.
        field: the field of the text in records.

    Raises:
        InputError: there is no such file, files of two kinds, or it holds no documents.
    """
    paths = paths_of(data)
    if paths is None:
        return as_source(data, field)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"There is no file {missing[0]}.")
    parquet = [path.suffix == ".parquet" for path in paths]
    if any(parquet) and not all(parquet):
        raise InputError("The files are of two kinds; pass only .parquet files, or none.")
    return ParquetFiles(paths, field) if all(parquet) else TextFiles(paths, field)


def paths_of(data: Any) -> list[Path] | None:
    """The files that data names, or None where it holds documents itself.

    A list of texts holds documents; a list is of files where all are `Path`s, or all end as files
    of texts do and the first exists.
    """
    if isinstance(data, PathLike):
        return _expanded(Path(data))
    if isinstance(data, str):
        return _expanded(Path(data))
    if not isinstance(data, Sequence) or not data:
        return None
    if all(isinstance(one, PathLike) for one in data):
        return [path for one in data for path in _expanded(Path(one))]
    named = all(isinstance(one, str) and one.endswith(_KNOWN) for one in data)
    if named and Path(data[0]).is_file():
        return [Path(one) for one in data]
    return None


def _expanded(path: Path) -> list[Path]:
    """A file, the files of a folder that have a known ending, or those that a glob matches."""
    try:
        folder = path.is_dir()
    except OSError as error:  # a text, which is too long for a name
        raise InputError(
            f"There is no file {str(path)!r:.60}: {error.strerror}. A single text is [text]."
        ) from error
    if folder:
        found = sorted(one for one in path.iterdir() if one.suffix in _KNOWN)
        if not found:
            raise InputError(f"The folder {path} has no files that end in {', '.join(_KNOWN)}.")
        return found
    if not path.exists() and any(sign in str(path) for sign in "*?["):
        return sorted(Path(one) for one in glob(str(path), recursive=True)) or [path]
    return [path]
