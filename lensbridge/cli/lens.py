"""`lensbridge lens`: what the residual stream predicts at every layer and position."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.grid import DOT, Cell, Grid, numbered, percent, token
from lensbridge.cli.opening import computing, opened, tokens_of
from lensbridge.cli.options import Loading, Model, Output, Text
from lensbridge.cli.output import console, note, show, show_json
from lensbridge.cli.pictures import check_files, save_files, wants_files

if TYPE_CHECKING:
    from lensbridge.analysis.lens_result import LogitLensResult
    from lensbridge.model import LensModel

EXAMPLES = (
    'lensbridge lens demo "The Eiffel Tower is in the city of"',
    'lensbridge lens demo "The Eiffel Tower is in the city of" --target " Paris"',
    'lensbridge lens gpt2 "Two plus two is" --top 5 --json',
    'lensbridge lens demo "The Eiffel Tower is in the city of" --html lens.html',
)


def run(
    model: Model,
    text: Text,
    loading: Loading,
    output: Output,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", help="Show the rank and probability of this token instead of the top."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of each cell in the JSON.")
    ] = 1,
) -> int:
    """Show the logit lens: the likeliest token at every layer (rows) and position (columns).

    The model's own final norm and head are applied to the residual stream before each layer and
    after the last, so the last row is the model's prediction.

    Raises:
        LensbridgeError: the model cannot be loaded, or the text or target does not fit it.
    """
    check_files(output)
    lens = opened(model, loading)
    with computing("applying the logit lens"):
        result = _result(lens, text, target, top)
        tokens = tokens_of(lens, text)
    if output.as_json:
        show_json({"model": model, "text": text, "tokens": tokens, **_as_json(result, target)})
    else:
        grid = _grid(result, tokens, target)
        show(*grid.tables(console()))
        note(DOT)
        note("0_pre is before layer 0, final_post at the end.")
    if wants_files(output):
        save_files(result.plot(), output)
    return 0


def _result(lens: "LensModel", text: str, target: str | None, top: int) -> "LogitLensResult":
    from lensbridge.analysis import logit_lens

    asked: dict[str, Any] = {"top_k": top} if target is None else {"targets": target}
    return logit_lens(lens, text, positions=None, return_type="probs", **asked)


def _as_json(result: "LogitLensResult", target: str | None) -> dict[str, Any]:
    """Lists with an entry for each row, and in it one for each position."""
    told: dict[str, Any] = {"rows": result.labels, "entropy": result.entropy[:, 0]}
    if target is not None:
        ranks = result.rank_trajectory()[:, 0]
        return {**told, "target": target, "rank": ranks, "prob": result.values[:, 0, :, 0]}
    ids = result.ids
    assert ids is not None
    top = result.decode()
    return {
        **told,
        "top_tokens": [row[0] for row in top],
        "top_ids": ids[:, 0],
        "top_probs": result.values[:, 0],
    }


def _grid(result: "LogitLensResult", tokens: list[str], target: str | None) -> Grid:
    probs = result.values[:, 0, :, 0].tolist()
    if target is None:
        words = [[token(at[0]) for at in row[0]] for row in result.decode()]
        title = "likeliest token, and its probability in percent"
    else:
        words = [[f"#{rank}" for rank in row] for row in result.rank_trajectory()[:, 0].tolist()]
        title = f"rank of {token(target)} (#0 is the likeliest), and its probability in percent"
    cells = [
        [Cell(f"{word} {percent(prob)}", prob) for word, prob in zip(*row, strict=True)]
        for row in zip(words, probs, strict=True)
    ]
    return Grid(title, "layer", result.labels, numbered(tokens), cells)
