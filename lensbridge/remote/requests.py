"""Requests of a client: arguments to a message, and its reply to a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeAlias

from lensbridge.errors import LimitError
from lensbridge.interventions.intervention import Intervention
from lensbridge.native.config import LensConfig
from lensbridge.points.point_names import PointNames
from lensbridge.remote.connection import Connection
from lensbridge.remote.description import understood
from lensbridge.remote.kinds import Chosen
from lensbridge.remote.limits import Limits
from lensbridge.remote.message import Message
from lensbridge.remote.operations import check_arguments
from lensbridge.remote.packing import packed, unpacked
from lensbridge.sweeps.progress_bar import ProgressBar

Progress: TypeAlias = "bool | Callable[[int, int], None]"
"""True shows a bar; a function is called with how many steps are done, and of how many."""

_ANY_NUMBER = 1_000_000


class RemoteRequests:
    """A model behind a server, as far as it is described and asked.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        try:
            self.description = understood(connection.get("/v1/model"), connection.url)
        except BaseException:
            connection.close()
            raise
        connection.most += self.limits.max_reply
        self._within: ContextVar[tuple[Intervention, ...]] = ContextVar("within", default=())

    @property
    def cfg(self) -> LensConfig:
        """The sizes and choices of the model."""
        return self.description.cfg

    @property
    def vocabulary(self) -> PointNames:
        """The names of its points."""
        return self.description.vocabulary

    @property
    def limits(self) -> Limits:
        """How much one request may ask for."""
        return self.description.limits

    def _filter(self, names_filter: Any) -> Any:
        """A filter of names as data: what a function chooses, it chooses here."""
        several = names_filter if isinstance(names_filter, list | tuple | set) else [names_filter]
        if not any(callable(one) for one in several):
            return names_filter
        if callable(names_filter):
            return Chosen(tuple(self.vocabulary.select(names_filter)))
        return list(self.vocabulary.select(list(several)))

    def _request(self, operation: str, given: Mapping[str, Any]) -> Message:
        within = self._within.get()
        sent = {**given, **({"within": list(within)} if within else {})}
        check_arguments(operation, sent)
        message = packed(sent)
        size, most = sum(one.nbytes for one in message.tensors.values()), self.limits.max_body
        if size > most:
            raise LimitError(
                f"The request has {size} bytes of tensors, and the server reads {most} at most. "
                "Send less at a time, or start it with a larger max_body."
            )
        return message

    def _reply(self, operation: str, progress: Progress, given: Mapping[str, Any]) -> bytes:
        request = self._request(operation, given)
        if callable(progress) or not progress:
            told = progress if callable(progress) else None
            return self.connection.reply(operation, request, told)
        bar = _Bar()
        try:
            return self.connection.reply(operation, request, bar)
        finally:
            bar.close()

    def _call(self, operation: str, progress: Progress = False, **given: Any) -> Any:
        return self._value(self._reply(operation, progress, given))

    def _value(self, body: bytes) -> Any:
        return unpacked(Message.from_bytes(body, _ANY_NUMBER))["value"]


class _Bar:
    """A progress bar that is made when the number of steps is known."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        self._bar = self._bar or ProgressBar(total, True)
        self._bar.reach(done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
