"""`lensbridge attn`: where heads attend."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.grid import DOT, Cell, Grid, numbered, percent, token
from lensbridge.cli.opening import computing, opened, tokens_of
from lensbridge.cli.options import Loading, Model, Output, Text
from lensbridge.cli.output import console, note, show, show_json
from lensbridge.cli.pictures import check_files, save_files, wants_files
from lensbridge.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lensbridge.model import LensModel
    from lensbridge.viz import Picture

EXAMPLES = (
    'lensbridge attn demo "The Eiffel Tower is in the city of"',
    'lensbridge attn demo "The Eiffel Tower is in the city of" --layer 2',
    'lensbridge attn demo "The Eiffel Tower is in the city of" --layer 2 --head 1 --png head.png',
    'lensbridge attn gpt2 "Hello there" --layer 5 --json',
)

Patterns = dict[int, "Tensor"]
"""Layer -> `[head, query, key]`."""


def run(
    model: Model,
    text: Text,
    loading: Loading,
    output: Output,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="Only this layer; negative: from the end.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(metavar="N", help="Only this head; needs --layer.")
    ] = None,
    query: Annotated[
        int, typer.Option(metavar="N", help="The position that attends; negative: from the end.")
    ] = -1,
) -> int:
    """Show attention patterns.

    Without --layer: for each head (columns) of each layer (rows), the token to which the last
    position attends most. With --layer: the weights of that position for each head. With --layer
    and --head: the whole pattern, queries in rows and keys in columns. Weights are in percent. A
    picture has at most 64 heads, so that one of a large model needs --layer.

    Raises:
        LensbridgeError: the model cannot be loaded, or it has no such layer, head or position.
    """
    check_files(output)
    if head is not None and layer is None:
        raise InputError("--head needs --layer: heads are counted in each layer.")
    lens = opened(model, loading)
    with computing("computing attention patterns"):
        tokens = tokens_of(lens, text)
        patterns = _patterns(lens, text, layer)
        if head is not None:
            head = _head(head, patterns)
            patterns = {one: value[head, None] for one, value in patterns.items()}
        place = _position(query, len(tokens))
        picture = _picture(patterns, tokens, head) if wants_files(output) else None
    if output.as_json:
        told = {"model": model, "text": text, "tokens": tokens, "head": head, "query": place}
        show_json({**told, "patterns": patterns})
    else:
        show(*_grid(patterns, tokens, place, layer, head).tables(console()))
        note(DOT)
    if picture is not None:
        save_files(picture, output)
    return 0


def _patterns(lens: "LensModel", text: str, layer: int | None) -> Patterns:
    from lensbridge.points.names import layer_of, stack_of

    asked: Any = "pattern" if layer is None else ("pattern", layer)
    main = lens.native.main.prefix
    names = [name for name in lens.vocabulary.select(asked) if stack_of(name) == main]
    _, cache = lens.run_with_cache(text, names_filter=names, return_type=None)
    return {layer_of(name) or 0: cache[name][0] for name in names}


def _head(head: int, patterns: Patterns) -> int:
    count = len(next(iter(patterns.values())))
    if not -count <= head < count:
        raise InputError(f"There is no head {head}: this layer has {count}, 0 to {count - 1}.")
    return head % count


def _position(query: int, count: int) -> int:
    if not -count <= query < count:
        raise InputError(f"There is no position {query}: the text has {count} tokens.")
    return query % count


def _grid(
    patterns: Patterns, tokens: list[str], query: int, layer: int | None, head: int | None
) -> Grid:
    labels = numbered(tokens)
    if layer is None:
        return _most_attended(patterns, tokens, query)
    number, pattern = next(iter(patterns.items()))
    if head is None:
        rows, values = [f"head {i}" for i in range(len(pattern))], pattern[:, query]
        return _weights(f"layer {number}: from {labels[query]} to", "", rows, labels, values)
    title = f"layer {number}, head {head}: from each token (rows) to each (columns)"
    return _weights(title, "", labels, labels, pattern[0])


def _most_attended(patterns: Patterns, tokens: list[str], query: int) -> Grid:
    widest = max(map(len, patterns.values()))
    rows = []
    for pattern in patterns.values():
        weights, keys = pattern[:, query].max(-1)
        pairs = zip(weights.tolist(), keys.tolist(), strict=True)
        row = [Cell(f"{token(tokens[key])} {percent(weight)}", weight) for weight, key in pairs]
        rows.append([*row, *[Cell("")] * (widest - len(row))])
    return Grid(
        f"where {query}:{token(tokens[query])} attends most, and how much in percent",
        "layer",
        list(map(str, patterns)),
        [f"head {i}" for i in range(widest)],
        rows,
    )


def _weights(
    title: str, corner: str, rows: list[str], columns: list[str], values: "Tensor"
) -> Grid:
    cells = [[Cell(percent(one), one) for one in row] for row in values.tolist()]
    return Grid(title, corner, rows, columns, cells)


def _picture(patterns: Patterns, tokens: list[str], head: int | None) -> "Picture":
    """The patterns over the text; heads are called layer.head."""
    import torch

    from lensbridge.viz import attention

    names = [
        f"{number}.{i if head is None else head}"
        for number, pattern in patterns.items()
        for i in range(len(pattern))
    ]
    return attention(torch.cat(list(patterns.values())), tokens, heads=names, title="Attention")
