"""Guard: which requests reach the model. It stands in front of everything else.

The page runs on the reader's own machine, where any web page that is open can send requests too.
So a request must name a host that is ours (a foreign page that was rebound to this address names
its own), come from our own page where the browser says so, and carry the token.
"""

from dataclasses import dataclass
from hmac import compare_digest
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lensbridge.remote.protocol import JSON, SAFETENSORS

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""Scripts and styles are files of this server, and text never becomes markup."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Door:
    """What stands behind a guard, and how it is asked.

    Args:
        asked: how addresses begin at which questions are asked; these carry the token in a header.
        open: how addresses begin that need no token.
        kinds: types of content that a question may have.
        what: what is said where the type is another.
        no_token: what is said where the token is missing.
    """

    asked: str
    open: str | None
    kinds: tuple[str, ...]
    what: str
    no_token: str


PAGE = Door(
    "/api/",
    "/static/",
    ("application/json",),
    "A question is JSON.",
    "This page needs its token: open the address that lensbridge serve printed, with ?token=... "
    "at its end.",
)
API = Door(
    "/",
    None,
    (JSON, SAFETENSORS),
    f"A request is {JSON} or {SAFETENSORS}.",
    "This server needs its token, which lensbridge serve printed: "
    "lensbridge.connect(url, token=...). It is sent as Authorization: Bearer TOKEN.",
)


@dataclass(frozen=True)
class Guard:
    """The checks of every request, and the headers of every response.

    Args:
        app: what is behind it.
        token: the secret; None asks for none.
        hosts: names that we are reached by, besides localhost and IP addresses.
        door: what stands behind it.
    """

    app: ASGIApp
    token: str | None
    hosts: tuple[str, ...] = ()
    door: Door = PAGE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(scope)
        await (refused or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is answered in place of the app; None lets the request through."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("This server is not reached by that name.", 421)
        path: str = scope["path"]
        if self.door.open is not None and path.startswith(self.door.open):
            return None
        if path.startswith(self.door.asked):
            return self._refusal_of_question(scope, headers, host)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return None if self._knows(given) else PlainTextResponse(self.door.no_token, 403)

    def _refusal_of_question(self, scope: Scope, headers: Headers, host: str) -> Response | None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != host):
            return _told(403, "Questions are answered to this server's own page only.")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not self._knows(given if scheme == "Bearer" else ""):
            return _told(403, self.door.no_token)
        kind = headers.get("content-type", "").partition(";")[0].strip()
        if scope["method"] == "POST" and kind not in self.door.kinds:
            return _told(415, self.door.what)
        return None

    def _knows(self, given: str) -> bool:
        return self.token is None or compare_digest(given.encode(), self.token.encode())

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in self.hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


def _told(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"message": message, **more}, status)
