"""The bodies of requests, read up to a limit."""

from starlette.requests import ClientDisconnect, Request

from lensbridge.errors import LimitError
from lensbridge.serve.refusals import Refused

_DRAINED = 4
"""How many times as much as is allowed is read at most; what is too much is thrown away. Who still
sends when the connection is closed may not see the answer."""


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is larger than it may be, or the client left before all of it had come.
    """
    said = request.headers.get("content-length", "")
    size = int(said) if said.isdecimal() else 0
    found, came = bytearray(), 0
    if size <= _DRAINED * most:
        try:
            async for part in request.stream():
                came += len(part)
                if came <= most:
                    found += part
                if came > _DRAINED * most:
                    break
        except ClientDisconnect:
            raise Refused(400, "The client left before its request had come.") from None
    size = max(size, came)
    if size > most:
        raise Refused(
            413, f"The request has {size} bytes, and {most} bytes are read at most.", LimitError
        )
    return bytes(found)
