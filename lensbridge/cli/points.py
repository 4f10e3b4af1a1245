"""`lensbridge points`: the activations of a model that have names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli import completion
from lensbridge.cli.opening import opened
from lensbridge.cli.options import AsJson, Loading, Model
from lensbridge.cli.output import note, show, show_json
from lensbridge.cli.working import working
from lensbridge.errors import InputError, UnsupportedArchitectureError
from lensbridge.points.axes import AXES
from lensbridge.viz.numbers import bytes_as_text

if TYPE_CHECKING:
    from rich.tree import Tree

    from lensbridge.hooked_model import HookedModel
    from lensbridge.plans.plan import PlannedValue

EXAMPLES = (
    "lensbridge points demo",
    "lensbridge points demo --point 'blocks.0.attn.*' --length 128",
    "lensbridge points gpt2 --point pattern --json",
)

Point = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        "--points",
        metavar="NAME",
        help="Only these: a name, a short name (resid_post) or a glob. May be repeated.",
        autocompletion=completion.points,
    ),
]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Examples of a run.")]
Length = Annotated[
    int, typer.Option("--length", "--tokens", min=1, metavar="N", help="Tokens of an example.")
]


@dataclass(frozen=True)
class Row:
    """One point; `shape`, `dtype` and `bytes` are None where only a run could tell them."""

    name: str
    axes: str
    shape: list[int] | None
    dtype: str | None
    bytes: int | None
    derived: bool
    editable: bool
    on_request: bool
    meaning: str


def run(
    model: Model,
    loading: Loading,
    point: Point = None,
    batch: Batch = 1,
    length: Length = 16,
    as_json: AsJson = False,
) -> int:
    """List the points of a model as a tree, with axes, shape, dtype and size of each.

    Shapes are worked out from the config, so no weights are read. A model whose architecture
    nobody has described is loaded, and its points are listed without shapes.

    Raises:
        LensbridgeError: there is no such model or point.
    """
    rows, title = _rows(model, loading, point, batch, length)
    if as_json:
        points = [vars(one) for one in rows]
        show_json({"model": model, "batch": batch, "length": length, "points": points})
        return 0
    show(_tree(title, rows))
    letters = dict.fromkeys(letter for one in rows for letter in one.axes.split())
    note(f"axes: {', '.join(f'{letter} {AXES[letter]}' for letter in letters)}.")
    if any(one.on_request for one in rows):
        note("on request: a cache has it only if it is named.")
    return 0


def _rows(
    model: str, how: Loading, asked: list[str] | None, batch: int, length: int
) -> tuple[list[Row], str]:
    from lensbridge.cli.weightless import weightless

    with working(f"reading the config of {model}"):
        try:
            found = weightless(model, how)
        except UnsupportedArchitectureError:
            lens = opened(model, how)
            return list(_described(lens, lens.vocabulary.select(asked or None), {})), repr(lens)
        found.check_length(length)
        names, values = found.names(asked), {}
        try:
            values = dict(found.plan(names, batch, length, gradients=False).values)
        except InputError as error:
            note(str(error))
        return list(_described(found.lens, names, values)), repr(found.lens)


def _described(
    lens: "HookedModel", names: Sequence[str], values: dict[str, "PlannedValue"]
) -> Iterator[Row]:
    for name in names:
        one, value = lens.explain(name), values.get(name)
        yield Row(
            name,
            one.axes,
            None if value is None else list(value.shape),
            None if value is None else str(value.dtype).removeprefix("torch."),
            None if value is None else value.bytes,
            one.derived,
            one.editable,
            one.on_request,
            one.meaning,
        )


def _tree(title: str, rows: Sequence[Row]) -> "Tree":
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(title))
    branches: dict[str, Tree] = {"": root}
    for row in rows:
        path, _, last = row.name.rpartition(".")
        _branch(branches, path).add(_leaf(last, row))
    return root


def _branch(branches: dict[str, "Tree"], path: str) -> "Tree":
    from rich.text import Text

    if path not in branches:
        above, _, last = path.rpartition(".")
        branches[path] = _branch(branches, above).add(Text(last, style="bold"))
    return branches[path]


def _leaf(name: str, row: Row) -> Any:
    from rich.text import Text

    leaf = Text(name).append(f"  {row.axes}", "cyan")
    if row.shape is not None and row.bytes is not None:
        size = bytes_as_text(row.bytes)
        leaf.append(f"  {' x '.join(map(str, row.shape))}  {row.dtype}  {size}")
    flags = ["on request"] * row.on_request + ["read only"] * (not row.editable)
    return leaf.append(f"  ({', '.join(flags)})" if flags else "", "dim")
