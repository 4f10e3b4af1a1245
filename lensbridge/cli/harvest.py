"""`lensbridge harvest`: activations of a dataset, in files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli import completion
from lensbridge.cli.opening import opened
from lensbridge.cli.options import DTYPES, AsJson, Loading, one_of
from lensbridge.cli.output import show, show_json
from lensbridge.cli.working import Advance, working
from lensbridge.errors import InputError
from lensbridge.viz.numbers import bytes_as_text

if TYPE_CHECKING:
    from lensbridge.harvest import Harvest, Report
    from lensbridge.harvest.engine import State, Told

EXAMPLES = (
    "lensbridge harvest demo texts.txt activations --point blocks.2.hook_resid_post",
    "lensbridge harvest gpt2 texts.jsonl activations --point resid_post --layer 6 --length 512 "
    "--keep-as bfloat16",
    "lensbridge harvest spec.json activations --part 3/64 --resume",
)

_PACKINGS = ("concat", "pad", "document")


@dataclass(frozen=True)
class Asked:
    """What is run and what is kept; not with SPEC.json, which says it."""

    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name, short name or glob; it needs a value for each token. May be repeated.",
            autocompletion=completion.points,
        ),
    ] = None
    layer: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="A layer of short names; all by default. May be repeated."),
    ] = None
    packing: Annotated[
        str,
        typer.Option(
            parser=one_of(_PACKINGS),
            metavar="PACKING",
            help="concat: texts are joined and cut into rows; pad: a row for each text, cut after "
            "--length; document: long texts go on in further rows.",
            autocompletion=completion.of(_PACKINGS),
        ),
    ] = "concat"
    length: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Tokens of a row at most, BOS included; by default the context, up to 1024.",
        ),
    ] = None
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows that run together.")] = 16
    shard_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens that are run for a shard, at most.")
    ] = 262_144
    keep_as: Annotated[
        str | None,
        typer.Option(
            parser=one_of(DTYPES),
            metavar="DTYPE",
            help="The dtype of what is written; by default the model's.",
            autocompletion=completion.of(DTYPES),
        ),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after about so many tokens.")
    ] = None
    field: Annotated[
        str, typer.Option(metavar="NAME", help="The field of the text in .jsonl or .parquet.")
    ] = "text"

    def of(self, model: str, data: list[str]) -> "Harvest":
        """The harvest of a model and some files."""
        from lensbridge.harvest import Harvest, Rows

        return Harvest(
            model=model,
            data=[Path(one) for one in data],
            points=self.point or [],
            layers=self.layer,
            rows=Rows(length=self.length, packing=self.packing),  # type: ignore[arg-type]  # parsed
            dtype=self.keep_as,
            batch=self.batch,
            shard_tokens=self.shard_tokens,
            field=self.field,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True)
class Going:
    """What this process does of it."""

    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="The part of this process, from 0; parts share one folder."
        ),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the folder has.")] = (
        False
    )
    index: Annotated[
        bool,
        typer.Option(
            "--index",
            help="Only keep in OUT where every shard begins, so that each part then reads no more "
            "than its own documents.",
        ),
    ] = False
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be written, and write nothing.")
    ] = False


ModelOrSpec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|SPEC.json",
        help="A model, or a file that `Harvest.to_json` wrote.",
        autocompletion=completion.models,
    ),
]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="[DATA]... OUT",
        help="Files with a text for each line, .jsonl or .parquet (none after SPEC.json), and "
        "the folder of the shards.",
    ),
]


def run(
    model: ModelOrSpec,
    paths: Paths,
    loading: Loading,
    asked: Asked,
    going: Going,
    as_json: AsJson = False,
) -> int:
    """Run a dataset and write the activations of some points to safetensors shards.

    A manifest in the folder says which shards are finished. With --resume the same command goes on
    where an interrupted one stopped; Ctrl-C ends it after the shard under way. Several processes
    write to one folder with --part, or under torchrun. Memory does not grow with the dataset.

    Raises:
        LensbridgeError: the model cannot be loaded, there is no such file or point, or the folder
            has another harvest.
    """
    *data, out = paths
    spec = _spec(model, data, asked)
    spec = replace(spec, model=opened(str(spec.model), loading))
    if going.plan:
        _show_plan(spec, as_json)
        return 0
    if going.index:
        _show_index(spec.index(out), out, as_json)
        return 0
    with _progress(spec) as told:
        report = spec.run(out, resume=going.resume, part=going.part, told=told)
    if as_json:
        show_json(_told(report))
    else:
        show(str(report))
    return 1 if report.interrupted else 0


def _show_plan(spec: "Harvest", as_json: bool) -> None:
    planned = spec.plan()
    if as_json:
        show_json({**vars(planned), "bytes": planned.bytes, "peak_bytes": planned.peak_bytes})
    else:
        show(str(planned))


def _show_index(shards: int, out: str, as_json: bool) -> None:
    if as_json:
        show_json({"folder": Path(out).resolve(), "shards": shards})
    else:
        show(f"{shards} shards begin at places that are kept in {out}")


def _spec(model: str, data: list[str], asked: Asked) -> "Harvest":
    """The harvest that a file says, or that the options say."""
    if model.endswith(".json") and Path(model).is_file():
        return _read(model, data, asked)
    _require(data, asked.point)
    return asked.of(model, data)


def _read(model: str, data: list[str], asked: Asked) -> "Harvest":
    from lensbridge.harvest import Harvest

    said = [name for name, value in vars(asked).items() if value != getattr(Asked(), name)]
    if data or said:
        options = ", ".join(f"--{one.replace('_', '-')}" for one in said) or "data"
        raise InputError(
            f"{model} says what is run and what is kept: pass only the folder after it, not "
            f"{options}."
        )
    return Harvest.from_json(Path(model).read_text(encoding="utf-8"))


def _require(data: list[str], point: list[str] | None) -> None:
    """Refuse what is missing before a model is loaded."""
    if not data:
        raise InputError("Name the data and the folder: lensbridge harvest MODEL DATA OUT.")
    missing = [one for one in data if not Path(one).exists() and not any(s in one for s in "*?[")]
    if missing:
        raise InputError(f"There is no file {missing[0]}.")
    if not point:
        raise InputError("Name at least one point: --point resid_post.")


@contextmanager
def _progress(spec: "Harvest") -> Iterator["Told"]:
    """Progress on a terminal: tokens a second, bytes, and the time left of the whole data."""
    with working("harvesting", 1.0) as advance:
        yield lambda state: _advance(advance, state)


def _advance(advance: Advance, state: "State") -> None:
    rate = state.tokens / state.seconds if state.seconds else 0.0
    advance(
        state.share or 0.0,
        f"shard {state.shard}, {state.tokens:,} tokens, {rate:,.0f} a second, "
        f"{bytes_as_text(state.bytes)} written",
    )


def _told(report: "Report") -> dict[str, Any]:
    return {
        "folder": report.folder.resolve(),
        "complete": report.complete,
        "tokens": report.tokens,
        "rows": report.rows,
        "bytes": report.bytes,
        "made": list(report.made),
        "run_tokens": report.run_tokens,
        "seconds": report.seconds,
        "tokens_per_second": report.tokens_per_second,
        "shards": [vars(one) for one in report.shards.values()],
    }
