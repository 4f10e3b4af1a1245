"""Connection: requests to a server, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from ipaddress import ip_address
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit
from weakref import finalize

from lensbridge import errors
from lensbridge.errors import InputError, LensbridgeError, RemoteError
from lensbridge.remote.header import json_of
from lensbridge.remote.message import Message, unframed
from lensbridge.remote.protocol import CLIENT, EVENTS, REPLY, SAFETENSORS

_HEADER = 64 * 1024**2
"""Bytes that a reply may have beside its tensors."""

_CONNECTING = 10.0
"""Seconds in which a server has to take a connection."""

Event = dict[str, Any]


class Connection:
    """A server that is asked over HTTP.

    Args:
        url: where it is.
        token: its secret; None: it asks for none.
        timeout: seconds that a server may be silent; None: any number.

    Raises:
        InputError: the address is none, or the token cannot be sent.
        LensbridgeError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None, timeout: float | None) -> None:
        _require_httpx()
        import httpx

        parts = urlsplit(url if isinstance(url, str) else "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"A server's address is such as 'http://127.0.0.1:8765', not {url!r}.")
        self.url = url.rstrip("/")
        self.most = _HEADER
        headers = {CLIENT: token_hex(8)}
        if token:
            if not (token.isascii() and token.isprintable()):
                raise InputError("A token is printable ASCII; this one has other characters.")
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=_CONNECTING),
            trust_env=not _is_local(parts.hostname),  # no proxy stands before this machine
        )
        self._ended = finalize(self, self._http.close)

    def close(self) -> None:
        """End the connection."""
        self._ended()

    def get(self, path: str) -> Any:
        """The JSON at an address.

        Raises:
            RemoteError: the server is not reached, or refuses.
        """
        with self._stream("GET", path) as response:
            return json_of(self._read(response))

    def ask(self, operation: str, request: Message) -> bytes:
        """The reply to one request.

        Raises:
            LensbridgeError: what the server raised, or RemoteError if it is not reached.
        """
        with self._stream("POST", f"/v1/{operation}", request) as response:
            return self._read(response)

    def events(self, operation: str, request: Message) -> Iterator[Event | bytes]:
        """What a server tells while it works, and at the end the reply.

        Raises:
            LensbridgeError: as `ask`.
        """
        with self._stream("POST", f"/v1/{operation}", request, EVENTS) as response:
            for sort, body in unframed(response.iter_bytes(), self.most):
                if sort == REPLY:
                    yield body
                    continue
                event = json_of(body)
                if event.get("event") == "error":
                    raise error_of(event, 500)
                yield event

    def reply(
        self, operation: str, request: Message, progress: Callable[[int, int], None] | None
    ) -> bytes:
        """The reply to one request, of which is told how far it is."""
        if progress is None:
            return self.ask(operation, request)
        found = None
        for one in self.events(operation, request):
            if isinstance(one, bytes):
                found = one
            elif one.get("event") == "progress":
                progress(int(one["done"]), int(one["total"]))
        if found is None:
            raise RemoteError(f"{self.url} ended the connection before its reply.")
        return found

    @contextmanager
    def _stream(
        self, verb: str, path: str, request: Message | None = None, accept: str = SAFETENSORS
    ) -> Iterator[Any]:
        import httpx

        body = None if request is None else request.to_bytes()
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = SAFETENSORS
        try:
            with self._http.stream(verb, path, content=body, headers=headers) as response:
                if response.status_code != 200:
                    raise self._refused(response)
                yield response
        except httpx.HTTPError as error:
            raise RemoteError(
                f"{self.url} cannot be reached ({type(error).__name__}: {error}). Start the server "
                "with: lensbridge serve MODEL --api."
            ) from error

    def _read(self, response: Any) -> bytes:
        found = bytearray()
        for part in response.iter_bytes():
            found += part
            if len(found) > self.most:
                raise RemoteError(f"{self.url} sends more than {self.most} bytes, its own limit.")
        return bytes(found)

    def _refused(self, response: Any) -> Exception:
        try:
            given = json_of(self._read(response))
        except LensbridgeError:
            given = None
        if not isinstance(given, dict) or "message" not in given:
            return RemoteError(
                f"{self.url} answers with the status {response.status_code}, and not as a server "
                "of lensbridge does."
            )
        return error_of(given, response.status_code)


def error_of(given: Mapping[str, Any], status: int) -> Exception:
    """The error that a server tells of, as the one that it raised."""
    name, message = str(given.get("type", "")), str(given.get("message", ""))
    if name == "TypeError":
        return TypeError(message)
    found = getattr(errors, name, None) if name in errors.__all__ else None
    if isinstance(found, type) and issubclass(found, LensbridgeError):
        return found(message)
    return RemoteError(f"{message} (status {status})")


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_httpx() -> None:
    if find_spec("httpx") is None:
        raise LensbridgeError("connect needs httpx: pip install 'lensbridge[remote]'.")
