"""Locks on files: who holds one is alive, because the system frees it when a process ends."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_HANDLES: dict[str, int] = {}
"""The open files of the locks that this process holds."""

_TRIES, _PAUSE = 3, 0.005
"""A lock is held for a moment by who looks whether it is: it is tried again, after seconds."""


@dataclass(frozen=True)
class Lock:
    """A lock that one process holds at a time.

    Args:
        path: its file, which is made if there is none.
    """

    path: Path

    def take(self) -> bool:
        """Take it and say whether that was possible; nobody gets it twice, this process neither."""
        key = str(self.path.absolute())
        if key in _HANDLES:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tries = _TRIES
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(handle):
                os.close(handle)
                tries -= 1
                if not tries:
                    return False
                time.sleep(_PAUSE)
                continue
            if _is_named(handle, self.path):
                _HANDLES[key] = handle
                return True
            os.close(handle)  # who had it removed the file in between

    def free(self) -> None:
        """Give it back."""
        handle = _HANDLES.pop(str(self.path.absolute()), None)
        if handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a living process has a lock, this one included."""
    if str(path.absolute()) in _HANDLES:
        return True
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    """Whether an open file is still the one with this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
