"""Files that are on the disk as a whole or not at all, and their checksums."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

_BLOCK = 2**20
"""Bytes that are read at once, into one buffer that fits into a processor's cache."""


def checksum(path: Path) -> str:
    """The CRC-32 of a file, as eight hexadecimal digits."""
    found, block = 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            found = zlib.crc32(block[:count], found)
    return f"{found:08x}"


def finish(new: Path, path: Path) -> None:
    """Bring a file that was written to the disk, and give it its name."""
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
