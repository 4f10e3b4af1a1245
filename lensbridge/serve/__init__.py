"""A model on a local web page: `lensbridge serve MODEL`, or `lensbridge.serve.run(model)`.

The page shows what the model predicts, its logit lens, attention, neurons and attributions. It also
edits, patches and steers. Each view shows the Python that computes the same numbers.

`run` serves the page until Ctrl-C, and `make_app` gives the web application alone. This package
imports nothing large before one of them is called.
"""

from typing import TYPE_CHECKING, Any

from lensbridge.errors import LensbridgeError
from lensbridge.serve.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lensbridge.model import LensModel

__all__ = ["Limits", "make_app", "run"]


def run(
    model: "str | LensModel | Any",
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    open_browser: bool = True,
    limits: Limits | None = None,
) -> None:
    """Serve a page for a model until Ctrl-C.

    Args:
        model: what `lensbridge.load` takes (a hub id, a folder, "demo", a transformers model), or
            a model that is loaded already.
        host: the address to listen at. At the default only this machine can reach the page.
        port: the port; 0 takes a free one.
        token: the secret that the page's address must have; None makes a new one; "" asks for
            none, which only a local address may do.
        open_browser: whether to open the page in the browser.
        limits: how much one question may ask for; None takes the defaults of `Limits`.

    Raises:
        LensbridgeError: fastapi or uvicorn is not installed, or the model cannot be loaded.
        InputError: the address is taken or not allowed, the token is not usable in an address, the
            model is in training mode, or this is the cell of a notebook.
    """
    _require_extra()
    from lensbridge.serve.server import serve

    serve(model, host, port, token, open_browser, limits or Limits())


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


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise LensbridgeError(
            f"The page needs {' and '.join(missing)}: pip install 'lensbridge[serve]'."
        )
