"""The web application: the page's files, and an address for each view."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from logging import getLogger
from pathlib import Path
from secrets import token_hex
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from lensbridge.errors import LensbridgeError
from lensbridge.serve.guard import Guard
from lensbridge.serve.offers import told
from lensbridge.serve.subject import Subject
from lensbridge.serve.views import VIEWS, View
from lensbridge.serve.waiting import until_left
from lensbridge.serve.worker import Busy, Cancelled, Job, Worker

PAGE = Path(__file__).parent / "page"


def app_of(subject: Subject, token: str | None, hosts: tuple[str, ...]) -> FastAPI:
    """The application for one model."""
    worker = Worker(subject.limits.max_waiting)
    card = told(subject)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    answers = _Answers(subject, worker, card["absent"])

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/api/model")
    async def model() -> JSONResponse:
        return JSONResponse(card)

    @app.post("/api/{view}")
    async def ask(view: str, request: Request) -> Response:
        return await answers.answer(view, request)

    app.mount("/static", StaticFiles(directory=PAGE))
    app.add_middleware(Guard, token=token, hosts=hosts)
    return app


class Refused(LensbridgeError):  # noqa: N818
    """A question that is not answered, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Answers:
    """Questions that come in, and the answers that go out.

    Args:
        subject: the model.
        worker: runs it.
        absent: the views that the model does not have, with the reasons.
    """

    def __init__(self, subject: Subject, worker: Worker, absent: Mapping[str, str]) -> None:
        self.subject = subject
        self.worker = worker
        self.absent = absent

    async def answer(self, name: str, request: Request) -> Response:
        """The answer to one question, or the message of what is wrong with it."""
        try:
            view = self._view(name)
            question = _asked(view, await _body(request, self.subject.limits.max_body))
            tab = request.headers.get("lensbridge-tab", "")[:64] or token_hex()
            with ExitStack() as stack:
                job = stack.enter_context(self.worker.job(tab, name))
                answered = self._stream if view.streams else self._single
                async with until_left(request, job):
                    answer = await answered(view, question, job)
                if isinstance(answer, Events):
                    answer.held = stack.pop_all()
                return answer
        except Exception as error:
            status, message = _explained(error)
            return JSONResponse({"message": message}, status)

    def _view(self, name: str) -> View:
        if name not in VIEWS:
            raise Refused(404, f"There is no view {name!r}; there are {', '.join(VIEWS)}.")
        if name in self.absent:
            raise Refused(422, self.absent[name])
        return VIEWS[name]

    async def _single(self, view: View, question: Any, job: Job) -> Response:
        def answer() -> bytes:
            return _encoded(view.answer(self.subject, question, job))

        return Response(await self.worker.run(job, answer), media_type="application/json")

    async def _stream(self, view: View, question: Any, job: Job) -> Response:
        """Events as lines of JSON. The first is made before the response begins, so that what is
        wrong with the question is its status."""
        events: Iterator[bytes] = map(_line, view.answer(self.subject, question, job))
        first = await self.worker.run(job, partial(next, events))
        return Events(self._lines(first, events, job), media_type="application/x-ndjson")

    async def _lines(self, first: bytes, events: Iterator[bytes], job: Job) -> AsyncIterator[bytes]:
        """All events; an error is the last one."""
        line: bytes | None = first
        try:
            while line is not None:
                yield line
                line = await self.worker.run(job, partial(next, events, None))
        except Exception as error:
            status, message = _explained(error)
            yield _line({"type": "error", "status": status, "message": message})


class Events(StreamingResponse):
    """A response that comes bit by bit.

    Attributes:
        held: what is given back at its end, also if the connection is closed before its beginning.
    """

    held: ExitStack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until there are no more or the connection is closed."""
        with self.held:
            await super().__call__(scope, receive, send)


def _encoded(answer: dict[str, Any]) -> bytes:
    """An answer as JSON.

    Raises:
        Refused: it has numbers that are not finite.
    """
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise Refused(
            422, "The model gives numbers here that are not finite (NaN or infinity)."
        ) from error


def _line(event: dict[str, Any]) -> bytes:
    return _encoded(event) + b"\n"


async def _body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is larger than a question may be.
    """
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise Refused(413, f"The question is too large: {most} bytes are read at most.")
    return bytes(found)


def _asked(view: View, body: bytes) -> Any:
    try:
        return view.question.model_validate_json(body)
    except ValidationError as error:
        raise Refused(422, _wrong(error)) from error


def _wrong(error: ValidationError) -> str:
    """What is wrong with a question, in a sentence for each field."""
    told = []
    for one in error.errors(include_url=False, include_input=False)[:3]:
        where = ".".join(str(part) for part in one["loc"][:3])
        told.append(f"{where}: {one['msg']}." if where else f"{one['msg']}.")
    return " ".join(told)


def _explained(error: Exception) -> tuple[int, str]:
    """The status and message of an error. What lensbridge raises is told as it is."""
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, Cancelled):
        return 409, str(error)
    if isinstance(error, Busy):
        return 503, str(error)
    if isinstance(error, LensbridgeError):
        return 422, str(error)
    getLogger(__name__).exception("A question could not be answered.")
    return 500, f"Something went wrong in the server: {type(error).__name__}. Its log says more."
