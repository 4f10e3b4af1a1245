"""Worker: the one thread that runs the model, and who may use it when.

Every question of the page is a job. Its steps run one at a time, in the order in which they were
asked for, so that a long sweep lets other questions in between two of its steps. All methods are
called on the event loop; only the functions that are passed to `run` are called on the thread.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

from lensbridge.errors import LensbridgeError

T = TypeVar("T")


class Cancelled(LensbridgeError):  # noqa: N818
    """Nobody waits for this job any more."""


class Busy(LensbridgeError):  # noqa: N818
    """Too many questions wait already."""


class Job:
    """One question that is being answered.

    Attributes:
        why: what is said of one that was cancelled.
    """

    why = "A newer question took the place of this one, or the page was left."

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self._stopped = Event()
        self._told = asyncio.Event()

    def cancel(self) -> None:
        """Nobody waits any more: do not begin another step, and leave the one that runs soon."""
        self._stopped.set()
        self._told.set()

    def check(self) -> None:
        """Leave a step that runs; called on the thread.

        Raises:
            Cancelled: nobody waits any more.
        """
        if self._stopped.is_set():
            raise Cancelled(self.why)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._stopped.is_set()

    async def cancelled(self) -> None:
        """Wait until nobody waits any more."""
        await self._told.wait()


class Worker:
    """The thread that runs the model.

    Args:
        max_waiting: how many jobs there may be at the same time.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._jobs: dict[tuple[str, str], Job] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lensbridge-serve")

    @contextmanager
    def job(self, tab: str, view: str) -> Iterator[Job]:
        """A new job. An older one of the same view of the same tab is cancelled.

        Raises:
            Busy: there are too many already.
        """
        key = (tab, view)
        older = self._jobs.pop(key, None)
        if older is not None:
            older.cancel()
        if len(self._jobs) >= self.max_waiting:
            raise Busy(
                f"The model is busy: {len(self._jobs)} questions are being answered. Try again "
                "when one of them is done."
            )
        job = self._jobs[key] = Job(key)
        try:
            yield job
        finally:
            job.cancel()
            if self._jobs.get(key) is job:
                del self._jobs[key]

    async def run(self, job: Job, step: Callable[[], T]) -> T:
        """Run a step of a job on the thread, after the steps that were asked for before.

        Raises:
            Cancelled: the job was cancelled. A step that is running goes on until it checks.
        """

        def guarded() -> T:
            job.check()
            return step()

        running = asyncio.get_running_loop().run_in_executor(self._pool, guarded)
        told = asyncio.ensure_future(job.cancelled())
        either: set[asyncio.Future[Any]] = {running, told}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.add_done_callback(_forget)
                job.check()
            return running.result()
        except asyncio.CancelledError:
            running.add_done_callback(_forget)
            raise
        finally:
            told.cancel()

    def close(self) -> None:
        """Cancel every job and end the thread when its step is done."""
        for job in list(self._jobs.values()):
            job.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forget(done: "asyncio.Future[Any]") -> None:
    """Take the result of a step that nobody waits for, so that its error is not reported."""
    if not done.cancelled():
        done.exception()
