"""A journal: a file with one JSON object a line, which a crash cannot spoil."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lensbridge.harvest.disk import sync_folder


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, and bring it to the disk."""
    broken = path.exists() and not _ends_well(path)
    with path.open("ab") as file:
        file.write((b"\n" if broken else b"") + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; one that a crash cut off is not there."""
    for raw in path.read_bytes().split(b"\n"):
        try:
            found = json.loads(raw)
        except ValueError:
            continue  # blank, or cut off by a crash
        if isinstance(found, dict):
            yield found


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
