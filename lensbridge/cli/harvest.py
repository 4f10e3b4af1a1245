"""`lensbridge harvest`: activations of a file of texts, in files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli import completion
from lensbridge.cli.opening import opened
from lensbridge.cli.options import DTYPES, AsJson, Loading, Model, one_of
from lensbridge.cli.output import show, show_json
from lensbridge.cli.working import working
from lensbridge.errors import InputError
from lensbridge.viz.numbers import bytes_as_text

if TYPE_CHECKING:
    from lensbridge.harvest import Manifest

EXAMPLES = (
    "lensbridge harvest demo texts.txt --point blocks.2.hook_resid_post --out activations",
    "lensbridge harvest gpt2 texts.jsonl --point resid_post --layout packed --length 512 "
    "--keep-as float16 --out activations",
)

_LAYOUTS = ("lines", "packed")


def run(
    model: Model,
    textfile: Annotated[
        Path, typer.Argument(metavar="TEXTFILE", help="A text for each line, or .jsonl.")
    ],
    loading: Loading,
    point: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A name, short name or glob; it needs a value for each token. May be repeated.",
            autocompletion=completion.points,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the shards.")],
    layout: Annotated[
        str,
        typer.Option(
            parser=one_of(_LAYOUTS),
            metavar="LAYOUT",
            help="lines: a row for each text, cut after --length; packed: texts joined with EOS.",
            autocompletion=completion.of(_LAYOUTS),
        ),
    ] = "lines",
    length: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of a row at most, BOS included.")
    ] = 128,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows that run together.")] = 16,
    shard_mb: Annotated[
        float, typer.Option(min=0.001, metavar="X", help="Megabytes of a shard, about.")
    ] = 512.0,
    keep_as: Annotated[
        str | None,
        typer.Option(
            parser=one_of(DTYPES),
            metavar="DTYPE",
            help="The dtype of what is written; by default the model's.",
            autocompletion=completion.of(DTYPES),
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after about so many tokens.")
    ] = None,
    field: Annotated[
        str, typer.Option(metavar="NAME", help="The field of the text in .jsonl.")
    ] = "text",
    as_json: AsJson = False,
) -> int:
    """Run a file of texts and write the activations of some points to safetensors shards.

    A manifest in the folder says what was run and how far it is. The same command goes on where an
    interrupted one stopped. Memory holds one shard and one batch, however long the file is. Each
    shard has the activations, tokens without padding, and the line and position of each token.

    Raises:
        LensbridgeError: the model cannot be loaded, there is no such file or point, or the folder
            has another harvest.
    """
    if not textfile.is_file():  # before the model is loaded
        raise InputError(f"There is no file {textfile}.")
    lens = opened(model, loading)
    import torch

    from lensbridge.harvest import Options
    from lensbridge.harvest import harvest as harvested

    options = Options(
        layout=layout,  # type: ignore[arg-type]  # the parser knows the words
        length=length,
        batch=batch,
        shard_bytes=int(shard_mb * 1e6),
        dtype=None if keep_as is None else getattr(torch, keep_as),
        max_tokens=max_tokens,
        field=field,
    )
    with working(f"harvesting {textfile.name}", textfile.stat().st_size) as advance:
        manifest = harvested(
            lens, textfile, point, out, options, lambda tokens, offset: advance(offset)
        )
    told = _told(manifest, out)
    if as_json:
        show_json(told)
    else:
        show(
            f"{told['tokens']:,} tokens of {len(manifest.points)} points in "
            f"{len(manifest.shards)} shards, {bytes_as_text(told['bytes'])}: {out.resolve()}"
        )
    return 0


def _told(manifest: "Manifest", out: Path) -> dict[str, Any]:
    return {
        "folder": out.resolve(),
        "complete": manifest.complete,
        "tokens": manifest.tokens,
        "bytes": sum(one.bytes for one in manifest.shards),
        "points": manifest.points,
        "shards": [vars(one) for one in manifest.shards],
        "source": manifest.source,
    }
