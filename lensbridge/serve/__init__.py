"""A model on a local web page: `lensbridge serve MODEL`, or `lensbridge.serve.run(model)`.

The page shows what the model predicts, its logit lens, attention, neurons and attributions. It also
edits, patches and steers. Each view shows the Python that computes the same numbers.

With `--api` (`api=True`) there is no page: programs on other machines use the model through
`lensbridge.connect`.

`run` serves until Ctrl-C, and `make_app` and `make_api` give the web applications alone. This
package imports nothing large before one of them is called.
"""

from typing import TYPE_CHECKING, Any

from lensbridge.errors import LensbridgeError
from lensbridge.serve.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lensbridge.model import LensModel
    from lensbridge.remote.limits import Limits as RemoteLimits

__all__ = ["Limits", "make_api", "make_app", "run"]


def run(
    model: "str | LensModel | Any",
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    open_browser: bool = True,
    limits: "Limits | RemoteLimits | None" = None,
    api: bool = False,
    hosts: tuple[str, ...] = (),
) -> None:
    """Serve a page for a model, or its programming interface, until Ctrl-C.

    Args:
        model: what `lensbridge.load` takes (a hub id, a folder, "demo", a transformers model), or
            a model that is loaded already.
        host: the address to listen at. At the default only this machine can reach the page.
        port: the port; 0 takes a free one.
        token: the secret that the page's address must have; None makes a new one; "" asks for
            none, which only a local address may do.
        open_browser: whether to open the page in the browser.
        limits: how much one question may ask for; None takes the defaults of `Limits`, or with
            `api=True` those of `lensbridge.remote.Limits`.
        api: serve what `lensbridge.connect` speaks to instead of the page.
        hosts: names that it may be reached by, besides localhost, IP addresses and `host`: that of
            a proxy in front of it.

    Raises:
        LensbridgeError: fastapi or uvicorn is not installed, or the model cannot be loaded.
        InputError: the address is taken or not allowed, the token is not usable in an address, the
            model is in training mode, or this is the cell of a notebook.
    """
    _require_extra()
    from lensbridge.serve.server import Address, serve

    serve(model, Address(host, port, token, hosts), open_browser and not api, limits, api)


def make_app(
    model: "LensModel",
    token: str | None = None,
    load: str | None = None,
    limits: Limits | None = None,
    hosts: tuple[str, ...] = (),
) -> "FastAPI":
    """The page and its interface as an ASGI application.

    Args:
        model: a loaded model.
        token: the secret that questions must carry; None asks for none.
        load: what to pass to `lensbridge.load` in the Python that views show.
        limits: how much one question may ask for.
        hosts: names that the page may be reached by, besides localhost and IP addresses.

    Raises:
        LensbridgeError: fastapi is not installed.
        InputError: the model is in training mode.
    """
    _require_extra()
    from lensbridge.serve.app import app_of
    from lensbridge.serve.subject import Subject

    return app_of(Subject(model, load, limits or Limits()), token, hosts)


def make_api(
    model: "LensModel",
    token: str | None = None,
    limits: "RemoteLimits | None" = None,
    hosts: tuple[str, ...] = (),
    name: str | None = None,
) -> "FastAPI":
    """The programming interface as an ASGI application: what `lensbridge.connect` speaks to.

    Args:
        model: a loaded model.
        token: the secret that requests must carry; None asks for none.
        limits: how much one request may ask for.
        hosts: names that it may be reached by, besides localhost and IP addresses.
        name: what clients are told that the model is called.

    Raises:
        LensbridgeError: fastapi is not installed.
        InputError: the model is in training mode.
    """
    _require_extra()
    from lensbridge.serve.api import api_of

    return api_of(model, token, limits, hosts, name)


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise LensbridgeError(
            f"The page needs {' and '.join(missing)}: pip install 'lensbridge[serve]'."
        )
