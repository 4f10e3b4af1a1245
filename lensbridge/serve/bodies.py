"""The bodies of requests, read up to a limit."""

from starlette.requests import Request

from lensbridge.errors import LimitError
from lensbridge.serve.refusals import Refused


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is larger than it may be.
    """
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise Refused(
                413, f"The question is too large: {most} bytes are read at most.", LimitError
            )
    return bytes(found)
