"""`lensbridge serve`: a page in the browser on which a model is explored."""

from importlib.util import find_spec
from typing import Annotated

import typer

from lensbridge.cli.opening import opened
from lensbridge.cli.options import Loading, Model
from lensbridge.errors import LensbridgeError

EXAMPLES = ("lensbridge serve demo", "lensbridge serve gpt2 --port 8080 --no-browser")

_NEEDED = ("fastapi", "uvicorn")


def run(
    model: Model,
    loading: Loading,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where it listens; by default only this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
    ] = 8765,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens that a prompt may have.")
    ] = 256,
) -> int:
    """Serve a page on which a model is explored, until Ctrl-C.

    Raises:
        LensbridgeError: the extra `serve` is not installed, or the model cannot be loaded.
    """
    missing = [one for one in _NEEDED if find_spec(one) is None]
    if missing:
        raise LensbridgeError(
            f"'lensbridge serve' needs {' and '.join(missing)}, not installed here: "
            "pip install 'lensbridge[serve]'."
        )
    from lensbridge import serve

    plain = loading == Loading()  # then the page knows the name, and shows it in its Python
    serve.run(
        model if plain else opened(model, loading),
        host=host,
        port=port,
        open_browser=browser,
        limits=serve.Limits(max_tokens=max_tokens),
    )
    return 0
