"""The web application of the interface: addresses, requests and replies over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from time import monotonic
from traceback import clear_frames
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from lensbridge.errors import InputError, LensbridgeError, LimitError
from lensbridge.model import LensModel
from lensbridge.remote.description import told
from lensbridge.remote.limits import Limits
from lensbridge.remote.message import Message, framed
from lensbridge.remote.operations import OPERATIONS
from lensbridge.remote.protocol import CLIENT, EVENT, EVENTS, JSON, REPLY, SAFETENSORS
from lensbridge.serve.api.answers import Answers
from lensbridge.serve.api.turns import Turn, Turns
from lensbridge.serve.bodies import read_body
from lensbridge.serve.events import Events
from lensbridge.serve.guard import API, Guard
from lensbridge.serve.refusals import Refused, explained
from lensbridge.serve.subject import require_eval
from lensbridge.serve.waiting import until_left
from lensbridge.steps import steps_told_to

_BETWEEN_EVENTS = 0.1
"""Seconds from one event of progress to the next, at least."""


def api_of(
    model: LensModel,
    token: str | None = None,
    limits: Limits | None = None,
    hosts: tuple[str, ...] = (),
    name: str | None = None,
) -> FastAPI:
    """The interface of a model as an ASGI application.

    Args:
        model: a loaded model.
        token: the secret that requests must carry; None asks for none.
        limits: how much one request may ask for.
        hosts: names that it may be reached by, besides localhost and IP addresses.
        name: what clients are told that the model is called.

    Raises:
        InputError: the model is in training mode.
    """
    require_eval(model)
    desk = _Desk(Answers(model, limits or Limits()))
    card = told(model, desk.limits, name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.turns.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.get("/v1/model")
    async def describe() -> JSONResponse:
        return JSONResponse(card)

    @app.post("/v1/{operation}")
    async def ask(operation: str, request: Request) -> Response:
        return await desk.answer(operation, request)

    app.state.turns = desk.turns
    app.add_middleware(Guard, token=token, hosts=hosts, door=API)
    return app


class _Desk:
    """Requests that come in, and the replies that go out."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.limits = answers.limits
        self.turns = Turns(self.limits.max_waiting, self.limits.max_begun)

    async def answer(self, operation: str, request: Request) -> Response:
        """The reply to one request, or the message of what is wrong with it."""
        try:
            if operation not in OPERATIONS:
                raise Refused(404, f"There is no {operation!r}; there are {', '.join(OPERATIONS)}.")
            with ExitStack() as stack:
                turn = stack.enter_context(self._turn(request))
                message = await self._message(request)
                if EVENTS in request.headers.get("accept", ""):
                    events = Events(
                        self._events(operation, message, turn, request), media_type=EVENTS
                    )
                    events.held = stack.pop_all()
                    return events
                async with until_left(request, turn):
                    body = await self._reply(operation, message, turn, lambda event: None)
                return Response(body, media_type=SAFETENSORS)
        except Exception as error:
            return _refusal(error)

    @contextmanager
    def _turn(self, request: Request) -> Any:
        peer = request.client.host if request.client else ""
        client = f"{peer} {request.headers.get(CLIENT, '')[:64]}"
        turn = Turn(client, self.limits.max_seconds)
        self.turns.admit(turn)
        try:
            yield turn
        finally:
            self.turns.discharge(turn)

    async def _message(self, request: Request) -> Message:
        most = self.limits.max_body
        try:
            reading = read_body(request, most)
            body = await asyncio.wait_for(reading, self.limits.max_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(408, "The request did not come in time.") from None
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        try:
            if kind == JSON:
                return await asyncio.to_thread(Message.from_json, body)
            return await asyncio.to_thread(Message.from_bytes, body, self.limits.max_tensors)
        except InputError as error:
            raise Refused(400, str(error)) from error

    async def _reply(self, operation: str, message: Message, turn: Turn, tell: Any) -> bytes:
        """Wait for the turn of a request, and for its reply.

        Args:
            operation: what is asked.
            message: the request.
            turn: its place in the queue.
            tell: called with events, on the thread that runs the model.
        """

        def work() -> bytes:
            with steps_told_to(_steps(self.turns, turn, tell)):
                return self.answers.answer(operation, message, tell)

        return await asyncio.wrap_future(self.turns.start(turn, work))

    async def _events(
        self, operation: str, message: Message, turn: Turn, request: Request
    ) -> AsyncIterator[bytes]:
        """Events as they come, and at the end the reply or the error."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def tell(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, event)

        async with until_left(request, turn):
            replying = asyncio.ensure_future(self._reply(operation, message, turn, tell))
            replying.add_done_callback(lambda done: queue.put_nowait(None))
            try:
                while (event := await queue.get()) is not None:
                    yield framed(EVENT, json.dumps(event).encode())
                yield framed(REPLY, replying.result())
            except Exception as error:
                status, name, text = _told(error)
                _release(error)
                event = {"event": "error", "status": status, "type": name, "message": text}
                yield framed(EVENT, json.dumps(event).encode())
            finally:
                turn.cancel()
                replying.cancel()


def _steps(turns: Turns, turn: Turn, tell: Any) -> Any:
    """What happens between two steps of a request."""
    last = 0.0

    def step(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last > _BETWEEN_EVENTS or done >= total:
            last = monotonic()
            tell({"event": "progress", "done": done, "total": total})
        turns.pause(turn)

    return step


def _told(error: Exception) -> tuple[int, str, str]:
    """The status, the class and the message of an error."""
    if isinstance(error, TypeError):
        return 422, "TypeError", str(error)
    status, message = explained(error)
    if isinstance(error, LimitError):
        status = 413
    name = error.kind.__name__ if isinstance(error, Refused) else type(error).__name__
    public = isinstance(error, LensbridgeError)
    return status, name if public else "RemoteError", message


def _release(error: BaseException | None) -> None:
    """Let go of the frames that an error knows, which hold the request: many are part of a circle
    with it, and would stay until the next collection of garbage."""
    while error is not None:
        clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _refusal(error: Exception) -> JSONResponse:
    status, name, message = _told(error)
    _release(error)
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"type": name, "message": message}, status, headers)
