"""`lensbridge serve`: a page on which a model is explored, or an interface for programs."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from lensbridge.cli.opening import opened
from lensbridge.cli.options import Loading, Model
from lensbridge.errors import LensbridgeError

EXAMPLES = (
    "lensbridge serve demo",
    "lensbridge serve gpt2 --port 8080 --no-browser",
    "lensbridge serve gpt2 --api",
)

_NEEDED = ("fastapi", "uvicorn")

Host = Annotated[
    str, typer.Option(metavar="HOST", help="Where it listens; by default only this machine.")
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
]
Browser = Annotated[bool, typer.Option(help="Open the page in the browser.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens that a prompt may have (256), or all inputs of a request (16384).",
    ),
]
Api = Annotated[
    bool, typer.Option("--api", help="Serve no page, but what lensbridge.connect speaks to.")
]
Secret = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", envvar="LENSBRIDGE_TOKEN", help="The secret; by default a new one."
    ),
]
ProxyName = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="A name that a proxy in front of it is reached by."),
]


def run(
    model: Model,
    loading: Loading,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    browser: Browser = True,
    max_tokens: MaxTokens = None,
    api: Api = False,
    token: Secret = None,
    name: ProxyName = None,
) -> int:
    """Serve a page on which a model is explored, or with --api a model for programs, until Ctrl-C.

    Raises:
        LensbridgeError: the extra `serve` is not installed, or the model cannot be loaded.
    """
    missing = [one for one in _NEEDED if find_spec(one) is None]
    if missing:
        raise LensbridgeError(
            f"'lensbridge serve' needs {' and '.join(missing)}, not installed here: "
            "pip install 'lensbridge[serve]'."
        )
    from lensbridge import remote, serve

    limits: Any = remote.Limits if api else serve.Limits
    plain = loading == Loading()  # then the page knows the name, and shows it in its Python
    serve.run(
        model if plain else opened(model, loading),
        host=host,
        port=port,
        open_browser=browser,
        token=token,
        limits=limits() if max_tokens is None else limits(max_tokens=max_tokens),
        api=api,
        hosts=tuple(name or ()),
    )
    return 0
