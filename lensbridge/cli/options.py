"""Options that several commands share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lensbridge.cli import completion
from lensbridge.errors import suggest

DTYPES = ("float32", "float16", "bfloat16", "float64")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A hub id, a folder, a GGUF file, or 'demo', the small model of lensbridge.",
        autocompletion=completion.models,
    ),
]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="The prompt.", show_default=False)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")
]


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """A parser of an option that takes one of a few words."""

    def parse(text: str) -> str:
        if text not in known:
            raise typer.BadParameter(
                f"{text!r} is not one of {', '.join(known)}.{suggest(text, known)}"
            )
        return text

    return parse


@dataclass(frozen=True)
class Loading:
    """How the model is loaded."""

    dtype: Annotated[
        str | None,
        typer.Option(
            parser=one_of(DTYPES),
            metavar="DTYPE",
            help=f"Load the weights as {', '.join(DTYPES)}; by default as they are stored.",
            autocompletion=completion.of(DTYPES),
            rich_help_panel="Loading",
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Such as cpu or cuda:0.", rich_help_panel="Loading"),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Branch, tag or commit on the hub.", rich_help_panel="Loading"
        ),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run code from the repository.", rich_help_panel="Loading"
        ),
    ] = False


@dataclass(frozen=True)
class Output:
    """Where results go besides the terminal."""

    html: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write a page that needs no network."),
    ] = None
    png: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write a picture."),
    ] = None
    as_json: AsJson = False
