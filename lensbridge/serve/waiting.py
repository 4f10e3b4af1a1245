"""Waiting: notice that the one who asked has left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from lensbridge.serve.worker import Job


@asynccontextmanager
async def until_left(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancel a job when the connection of its request is closed. The body has been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watching.cancel()
