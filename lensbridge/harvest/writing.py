"""Shards written while the next ones are computed, and interrupts that wait for them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from types import FrameType
from typing import Any

from torch import Tensor

from lensbridge.harvest.folder import Writer
from lensbridge.harvest.manifest import Shard


class Writing:
    """A thread that writes shards, one at a time, while the next one is computed.

    Args:
        writer: who writes.
        wrote: called with each shard that is finished.
    """

    def __init__(self, writer: Writer, wrote: Callable[[Shard], None]) -> None:
        self._writer, self._wrote = writer, wrote
        self._queue: Queue[tuple[int, dict[str, Tensor], dict[str, Any]] | None] = Queue(1)
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, name="harvest-writer", daemon=True)

    def put(self, number: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Hand a shard over; waits until the one before it is written.

        Raises:
            InputError: an earlier one could not be written.
        """
        self._raise()
        self._queue.put((number, tensors, about))

    def _work(self) -> None:
        while (one := self._queue.get()) is not None:
            if self._failed:
                continue  # nothing after a shard that failed, so that put does not wait for ever
            try:
                self._wrote(self._writer.write(*one))
            except BaseException as error:
                self._failed.append(error)

    def _raise(self) -> None:
        if self._failed:
            raise self._failed[0]

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()


@contextmanager
def interrupts(stopped: threading.Event) -> Iterator[None]:
    """A context in which the first interrupt sets an event, and the second interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
