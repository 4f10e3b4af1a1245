"""The web application: the page's files, and an address for each view."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from lensbridge.serve.bodies import read_body
from lensbridge.serve.events import Events
from lensbridge.serve.guard import Guard
from lensbridge.serve.offers import told
from lensbridge.serve.refusals import Refused, explained
from lensbridge.serve.subject import Subject
from lensbridge.serve.views import VIEWS, View
from lensbridge.serve.waiting import until_left
from lensbridge.serve.worker import Job, Worker

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
            question = _asked(view, await read_body(request, self.subject.limits.max_body))
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
            status, message = explained(error)
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
            status, message = explained(error)
            yield _line({"type": "error", "status": status, "message": message})


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
