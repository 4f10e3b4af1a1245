"""The server: a model behind an address, until Ctrl-C."""

import asyncio
import socket
import webbrowser
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from threading import Timer
from typing import Any

from lensbridge.errors import InputError

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Address:
    """Where a model is served, and to whom.

    Args:
        host: the address to listen at.
        port: the port; 0 takes a free one.
        token: the secret; None makes one, "" asks for none.
        hosts: other names that it may be reached by.
    """

    host: str
    port: int
    token: str | None
    hosts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it may be reached by, besides localhost and IP addresses."""
        own = () if self.host in _LOCAL else (self.host, socket.gethostname().lower())
        return (*own, *self.hosts)


def serve(model: Any, address: Address, open_browser: bool, limits: Any, api: bool) -> None:
    """See `lensbridge.serve.run`."""
    _refuse_notebook()
    secret = _secret(address.token, address.host)
    with closing(listening_at(address.host, address.port)) as listening:
        app = _app(model, secret, address.names, limits, api)
        port = listening.getsockname()[1]
        if api:
            url = _address(address.host, port, None).rstrip("/")
            token = f", token={secret!r}" if secret else ""
            print(f"The model is at {url}\nlensbridge.connect({url!r}{token})", flush=True)
            print("Ctrl-C ends it.", flush=True)
        else:
            shown = _address(address.host, port, secret)
            print(f"The page is at {shown}\nCtrl-C ends it.", flush=True)
            if open_browser:
                Timer(0.3, webbrowser.open, [shown]).start()
        _answer(app, listening)


def _refuse_notebook() -> None:
    """Refuse to serve where an event loop runs already, as in the cells of a notebook.

    Raises:
        InputError: with what to do instead.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InputError(
        "run() serves until Ctrl-C, which a notebook's cell cannot. Start it in a thread: "
        "threading.Thread(target=lensbridge.serve.run, args=(model,), daemon=True).start(). Or "
        "write lensbridge serve MODEL in a terminal."
    )


def _app(model: Any, token: str | None, hosts: tuple[str, ...], limits: Any, api: bool) -> Any:
    from lensbridge.model import LensModel
    from lensbridge.serve import make_api, make_app

    name = model if isinstance(model, str) else None
    if not isinstance(model, LensModel):
        from lensbridge.loading import load

        print("Loading the model ...", flush=True)
        model = load(model)
    if api:
        return make_api(model, token, limits, hosts, name and Path(name).name)
    return make_app(model, token, name, limits, hosts)


def _answer(app: Any, listening: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    with suppress(KeyboardInterrupt):  # raised again after the server has ended
        uvicorn.Server(config).run(sockets=[listening])


def _secret(token: str | None, host: str) -> str | None:
    """The token of the page; None where none is asked for.

    Raises:
        InputError: a token that an address cannot hold, or none where others reach the page.
    """
    if token is None:
        return token_urlsafe(18)
    if not token:
        if host not in _LOCAL:
            raise InputError(
                f"Without a token everybody who reaches {host} could use the model. Leave token "
                "out, or listen at 127.0.0.1."
            )
        return None
    if not all(sign.isascii() and (sign.isalnum() or sign in "-_.~") for sign in token):
        raise InputError(
            "A token is a part of the page's address: use ASCII letters, digits and -_.~ only."
        )
    return token


def listening_at(host: str, port: int) -> socket.socket:
    """A socket that listens, before the model is loaded.

    Raises:
        InputError: the address is taken or cannot be used.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise InputError(f"A port is a number from 0 to 65535, not {port!r}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"Nothing can listen at {host}, port {port} ({error.strerror or error}). Choose "
            "another port; port 0 takes a free one."
        ) from error
    # connections inherit it; without it the end of a reply waits 40 ms to be acknowledged
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _address(host: str, port: int, token: str | None) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
