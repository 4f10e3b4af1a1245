"""`lensbridge steer`: a text continued with and without a steering vector."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli import completion
from lensbridge.cli.grid import token
from lensbridge.cli.opening import computing, opened
from lensbridge.cli.options import Loading, Model, Output, Text, one_of
from lensbridge.cli.output import console, printable, show, show_json
from lensbridge.cli.pictures import check_files, save_files, wants_files
from lensbridge.errors import InputError

if TYPE_CHECKING:
    from lensbridge.generation import Continuations
    from lensbridge.interventions import Steer
    from lensbridge.model import LensModel

EXAMPLES = (
    'lensbridge steer demo "The Eiffel Tower is in the city of" --toward "The Galata Tower" '
    '--away "The Eiffel Tower" --layer 1 --scale 2',
    'lensbridge steer gpt2 "I think that" --toward "Love" --away "Hate" --layer 6 --scale 5 '
    "--tokens 30",
)

_SHOWN = 5
"""How many likely next tokens of each side are listed."""

_READ = ("last", "mean")
Texts = list[str]

Toward = Annotated[
    Texts, typer.Option(metavar="TEXT", help="A text with the property. May be repeated.")
]
Away = Annotated[Texts, typer.Option(metavar="TEXT", help="A text without it. May be repeated.")]
Layer = Annotated[
    int | None, typer.Option(metavar="N", help="The layer; by default the one in the middle.")
]
Scale = Annotated[float, typer.Option(metavar="X", help="What the vector is multiplied by.")]
Point = Annotated[
    str,
    typer.Option(metavar="NAME", help="Where it is added.", autocompletion=completion.points),
]
Read = Annotated[
    str,
    typer.Option(
        parser=one_of(_READ),
        metavar="WHERE",
        help="Which tokens of --toward and --away are read: last or mean.",
        autocompletion=completion.of(_READ),
    ),
]
Tokens = Annotated[int, typer.Option(min=1, metavar="N", help="New tokens.")]


def run(
    model: Model,
    text: Text,
    loading: Loading,
    output: Output,
    toward: Toward,
    away: Away,
    layer: Layer = None,
    scale: Scale = 1.0,
    point: Point = "resid_post",
    read: Read = "last",
    tokens: Tokens = 10,
) -> int:
    """Continue a text with and without a steering vector, side by side.

    The vector is the mean activation of the texts of --toward minus that of the texts of --away. It
    is added at every position. The likeliest token is taken at each step, so the result is the same
    every time.

    Raises:
        LensbridgeError: the model cannot be loaded or does not generate, or there is no such
            point or layer.
    """
    check_files(output)
    lens = opened(model, loading)
    with computing("steering"):
        steer = _vector(lens, toward, away, _site(lens, point, layer), read).at(strength=scale)
        both = lens.generate_with_and_without(text, steer, tokens, top_k=_SHOWN)
    if output.as_json:
        about = {"model": model, "text": text, "toward": toward, "away": away, "scale": scale}
        show_json({**about, **_as_json(steer, both)})
    else:
        _print(both)
    if wants_files(output):
        save_files(both.plot(), output)
    return 0


def _site(lens: "LensModel", point: str, layer: int | None) -> str:
    """The one point that is meant: a full name, or a short name in a layer."""
    if "." in point:
        if layer is not None:
            raise InputError(f"{point} names its layer already: leave --layer out.")
        return lens.vocabulary.canonical(point)
    return lens.vocabulary.canonical((point, lens.cfg.n_layers // 2 if layer is None else layer))


def _vector(lens: "LensModel", toward: Texts, away: Texts, site: str, read: Any) -> "Steer":
    from lensbridge.interventions import steering_vector

    return steering_vector(lens, toward, away, site, position=read)


def _as_json(steer: "Steer", both: "Continuations") -> dict[str, Any]:
    top = [
        {"token": word, "without": before, "steered": after} for word, (before, after) in _top(both)
    ]
    return {
        "point": steer.site,
        "vector_norm": float(steer.vector.norm()),
        "without": both.without,
        "steered": both.steered,
        "next_tokens": top,
    }


def _top(both: "Continuations") -> list[tuple[str, list[float]]]:
    """The likeliest tokens of either side, with their probability in each."""
    return list(zip(both.tokens, both.probabilities.T.tolist(), strict=True))


def _print(both: "Continuations") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text as RichText

    beside = Table(box=SIMPLE_HEAD, pad_edge=False)
    labels, texts = ("without", "steered"), (both.without, both.steered)
    written = [RichText(printable(one)) for one in texts]
    if console().width >= 60:
        for label in labels:
            beside.add_column(label, ratio=1, overflow="fold")
        beside.add_row(*written)
    else:
        beside.add_column("")
        beside.add_column("text", overflow="fold")
        for label, text in zip(labels, written, strict=True):
            beside.add_row(label, text)
    following = Table(box=SIMPLE_HEAD, pad_edge=False)
    following.add_column("next token")
    for label in labels:
        following.add_column(f"{label} %", justify="right")
    for word, probs in _top(both):
        following.add_row(RichText(token(word)), *(f"{100 * one:.1f}" for one in probs))
    show(beside, following)
