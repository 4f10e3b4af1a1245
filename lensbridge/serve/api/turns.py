"""Turns: which request runs now.

One request has the model at a time. Clients take turns: whoever has waited longest is next, however
many requests others have. A long request gives the model away between two steps and goes on later.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from time import monotonic
from typing import Any

import torch

from lensbridge.errors import LimitError
from lensbridge.serve.worker import Busy, Job

_SLICE = 0.25
"""Seconds after which a request lets others in, if some wait."""


class Turn(Job):
    """One request: its place in the queue, and how long it may run.

    Args:
        client: who asks.
        seconds: how long it may run.
    """

    why = "The client has left."

    def __init__(self, client: str, seconds: float) -> None:
        super().__init__((client, ""))
        self.client = client
        self.seconds = seconds
        self.ran = self.since = 0.0
        self.work: Callable[[], Any] = lambda: None
        self.done: Future[Any] = Future()
        self.turns: Turns | None = None

    def cancel(self) -> None:
        """Nobody waits any more: it ends at its next step."""
        super().cancel()
        if self.turns is not None:
            self.turns.look()

    def check(self) -> None:
        """Leave a request that nobody waits for, or that takes too long.

        Raises:
            Cancelled: nobody waits.
            LimitError: it has run for too long.
        """
        super().check()
        ran = self.ran + monotonic() - self.since
        if self.since and ran > self.seconds:
            raise LimitError(
                f"The request has run for {ran:.0f} seconds, and the server allows "
                f"{self.seconds:.0f}. Ask for less at a time, or start the server with a larger "
                "max_seconds."
            )


class Turns:
    """The queue of a model.

    Args:
        max_waiting: requests that run or wait; one client has half of these at most.
        max_begun: requests that are begun, each with a thread.
    """

    def __init__(self, max_waiting: int, max_begun: int) -> None:
        self.max_waiting = max_waiting
        self.max_begun = max_begun
        self._changed = Condition()
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()
        self._all: set[Turn] = set()
        self._begun: set[Turn] = set()
        self._holder: Turn | None = None
        self._pool = ThreadPoolExecutor(max_begun, thread_name_prefix="lensbridge-api")

    def admit(self, turn: Turn) -> None:
        """Take a request in.

        Raises:
            Busy: there are too many, or too many of this client.
        """
        with self._changed:
            own = sum(one.client == turn.client for one in self._all)
            most = max(1, self.max_waiting // 2)
            if len(self._all) >= self.max_waiting or own >= most:
                raise Busy(
                    f"The server is busy: {len(self._all)} requests run or wait ({own} of this "
                    f"client), and it takes {self.max_waiting} ({most} of one client). Try again "
                    "later."
                )
            self._all.add(turn)
            turn.turns = self

    def discharge(self, turn: Turn) -> None:
        """Forget a request that is answered or given up."""
        turn.cancel()
        with self._changed:
            self._all.discard(turn)

    def start(self, turn: Turn, work: Callable[[], Any]) -> Future[Any]:
        """Put a request into the queue; its work is done in a thread when it is its turn."""
        turn.work = work
        with self._changed:
            self._waiting.setdefault(turn.client, deque()).append(turn)
            self._grant()
        return turn.done

    def pause(self, turn: Turn) -> None:
        """Between two steps of a request, on its thread: let others in if it is their turn.

        Raises:
            Cancelled: nobody waits for this request any more.
            LimitError: it has run for too long.
        """
        turn.check()
        if monotonic() - turn.since < _SLICE:
            return
        with self._changed:
            turn.ran, turn.since = turn.ran + monotonic() - turn.since, monotonic()
            if not self._waiting:
                return
            self._give_away(turn)

    def _give_away(self, turn: Turn) -> None:
        """Wait until it is this request's turn again; random numbers go on where they were."""
        state = torch.get_rng_state()
        self._holder = None
        self._waiting.setdefault(turn.client, deque()).appendleft(turn)
        self._waiting.move_to_end(turn.client)
        self._grant()
        while self._holder is not turn:
            self._changed.wait()
        torch.set_rng_state(state)
        turn.check()

    def look(self) -> None:
        """Take cancelled requests that are not begun out of the queue."""
        with self._changed:
            for client, queue in list(self._waiting.items()):
                for turn in [one for one in queue if one.is_cancelled and one not in self._begun]:
                    queue.remove(turn)
                    _end(turn)
                if not queue:
                    del self._waiting[client]
            self._grant()

    def close(self) -> None:
        """Cancel every request, and end the threads when their steps are done."""
        for turn in list(self._all):
            turn.cancel()
        self._pool.shutdown(wait=False)

    def _grant(self) -> None:
        """Give the model to the next request, if it is free."""
        if self._holder is not None:
            return
        for queue in self._waiting.values():
            turn = queue[0]
            if turn in self._begun or len(self._begun) < self.max_begun:
                break
        else:
            return
        queue.popleft()
        del self._waiting[turn.client]
        if queue:
            self._waiting[turn.client] = queue
        self._holder = turn
        turn.since = monotonic()
        if turn in self._begun:
            self._changed.notify_all()
        else:
            self._begun.add(turn)
            self._pool.submit(self._run, turn)

    def _run(self, turn: Turn) -> None:
        found, error = None, None
        try:
            turn.check()
            found = turn.work()
        except BaseException as raised:
            error = raised
        turn.work = lambda: None  # it holds the request
        with self._changed:
            self._begun.discard(turn)
            self._holder = None
            self._grant()
        try:
            if not turn.done.set_running_or_notify_cancel():
                return
            if error is None:
                turn.done.set_result(found)
            else:
                turn.done.set_exception(error)
        finally:
            error = None  # it knows this frame, which would keep it and the request alive


def _end(turn: Turn) -> None:
    """Say that a request which never began is cancelled."""
    if turn.done.set_running_or_notify_cancel():
        try:
            turn.check()
        except Exception as error:
            turn.done.set_exception(error)
