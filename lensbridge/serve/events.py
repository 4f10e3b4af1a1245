"""Events: a response that comes bit by bit."""

from contextlib import ExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


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
