"""The web application: the page's files, and an address for each view."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from lensbridge.errors import LensbridgeError
from lensbridge.serve.guard import Guard
from lensbridge.serve.offers import absent, told
from lensbridge.serve.subject import Subject
from lensbridge.serve.views import VIEWS, View
from lensbridge.serve.waiting import until_left
from lensbridge.serve.worker import Busy, Cancelled, Job, Worker

PAGE = Path(__file__).parent / "page"


def app_of(subject: Subject, token: str | None, hosts: tuple[str, ...]) -> FastAPI:
    """The application for one model."""
    worker = Worker(subject.limits.max_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    answers = _Answers(subject, worker)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/api/model")
    async def model() -> JSONResponse:
        return JSONResponse(told(subject))

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
    """Questions that come in, and the answers that go out."""

    def __init__(self, subject: Subject, worker: Worker) -> None:
        self.subject = subject
        self.worker = worker

    async def answer(self, name: str, request: Request) -> Response:
        """The answer to one question, or the message of what is wrong with it."""
        try:
            view = self._view(name)
            question = _asked(view, await _body(request, self.subject.limits.max_body))
            tab = request.headers.get("lensbridge-tab", "")[:64]
            if view.streams:
                return await self._stream(view, question, tab, name)
            return await self._single(view, question, tab, name, request)
        except Exception as error:
            status, message = _explained(error)
            return JSONResponse({"message": message}, status)

    def _view(self, name: str) -> View:
        if name not in VIEWS:
            raise Refused(404, f"There is no view {name!r}; there are {', '.join(VIEWS)}.")
        why = absent(self.subject).get(name)
        if why is not None:
            raise Refused(422, why)
        return VIEWS[name]

    async def _single(
        self, view: View, question: Any, tab: str, name: str, request: Request
    ) -> Response:
        with self.worker.job(tab, name) as job:
            async with until_left(request, job):
                answer = partial(view.answer, self.subject, question, job)
                return JSONResponse(await self.worker.run(job, answer))

    async def _stream(self, view: View, question: Any, tab: str, name: str) -> Response:
        """Events as lines of JSON. The first is made before the response begins, so that what is
        wrong with the question is its status."""
        held = self.worker.job(tab, name)
        job = held.__enter__()
        events = view.answer(self.subject, question, job)
        try:
            first = await self.worker.run(job, partial(next, events))
        except BaseException:
            held.__exit__(None, None, None)
            raise

        async def lines() -> AsyncIterator[bytes]:
            try:
                yield _line(first)
                async for event in self._rest(events, job):
                    yield _line(event)
            finally:
                held.__exit__(None, None, None)
                self.worker.later(events.close)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _rest(self, events: Iterator[Any], job: Job) -> AsyncIterator[dict[str, Any]]:
        """The events after the first; an error is the last one."""
        try:
            while (event := await self.worker.run(job, partial(next, events, None))) is not None:
                yield event
        except Exception as error:
            status, message = _explained(error)
            yield {"type": "error", "status": status, "message": message}


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


async def _body(request: Request, most: int) -> bytes:
    """What was sent.

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
