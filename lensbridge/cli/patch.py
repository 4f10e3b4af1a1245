"""`lensbridge patch`: which activations carry the difference between two prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lensbridge.cli import completion
from lensbridge.cli.grid import DOT, Cell, Grid, numbered, percent, token
from lensbridge.cli.opening import computing, opened
from lensbridge.cli.options import Loading, Model, Output
from lensbridge.cli.output import console, note, show, show_json
from lensbridge.cli.pictures import check_files, save_files, wants_files
from lensbridge.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lensbridge.cache import ActivationCache
    from lensbridge.model import LensModel
    from lensbridge.patching import PatchingResult
    from lensbridge.sweeps.metric import MetricFunction
    from lensbridge.viz import Picture

EXAMPLES = (
    'lensbridge patch demo "The Eiffel Tower is in the city of" '
    '"The Galata Tower is in the city of"',
    'lensbridge patch demo "The Eiffel Tower is in the city of" '
    '"The Galata Tower is in the city of" --answer " Paris" --wrong " Istanbul" --point mlp_out',
    'lensbridge patch demo "The Eiffel Tower is in the city of" '
    '"The Galata Tower is in the city of" --heads --html heads.html',
)

Clean = Annotated[str, typer.Argument(metavar="CLEAN", help="A prompt.")]
Corrupted = Annotated[
    str, typer.Argument(metavar="CORRUPTED", help="Another one of as many tokens.")
]
Answer = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN", help="The clean prompt's answer; by default what the model predicts."
    ),
]
Wrong = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        help="The corrupted prompt's answer; by default what the model predicts.",
    ),
]
Point = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What is patched at each layer and position: resid_pre, attn_out, mlp_out, ...",
        autocompletion=completion.points,
    ),
]
Heads = Annotated[bool, typer.Option("--heads", help="Patch each head at all positions instead.")]


@dataclass(frozen=True)
class Patched:
    """What the patches did.

    Args:
        point: the activation that was patched.
        answer: the token that the clean prompt is for.
        wrong: the token that the corrupted prompt is for.
        clean: logit difference of the clean run.
        corrupted: logit difference of the corrupted run.
        values: of each patched run; NaN where a layer lacks the point. `[layer, position or head]`
        columns: labels of the positions or heads.
    """

    point: str
    answer: str
    wrong: str
    clean: float
    corrupted: float
    values: "Tensor"
    columns: list[str]

    @property
    def restored(self) -> "Tensor":
        """How far each patch moves the difference: 0 is the corrupted run, 1 the clean one."""
        return (self.values - self.corrupted) / (self.clean - self.corrupted)


def run(
    model: Model,
    clean: Clean,
    corrupted: Corrupted,
    loading: Loading,
    output: Output,
    answer: Answer = None,
    wrong: Wrong = None,
    point: Point = "resid_pre",
    heads: Heads = False,
) -> int:
    """Patch activations of the clean run into the corrupted run, one place at a time.

    Each cell is one run: the corrupted prompt with the clean activation at that layer (row) and
    position or head (column). It shows which share of the logit difference between the two answers
    is restored, in percent: 0 is the corrupted run, 100 the clean one.

    Raises:
        LensbridgeError: the model cannot be loaded, the prompts differ in length, an answer is
            not one token, or there is no such point.
    """
    check_files(output)
    lens = opened(model, loading)
    with computing("patching"):
        found = _patched(lens, clean, corrupted, (answer, wrong), "z" if heads else point, heads)
    if output.as_json:
        prompts = {"model": model, "clean_prompt": clean, "corrupted_prompt": corrupted}
        show_json({**prompts, **vars(found), "restored": found.restored})
    else:
        out = console()
        show(_summary(found), *_grid(found, heads).tables(out))
        note(DOT)
    if wants_files(output):
        save_files(_picture(found, heads), output)
    return 0


def _patched(
    lens: "LensModel",
    clean: str,
    corrupted: str,
    answers: tuple[str | None, str | None],
    point: str,
    heads: bool,
) -> Patched:
    clean_logits, cache = lens.run_with_cache(clean)
    right, wrong = _answers(lens, clean_logits, lens(corrupted), answers)

    def difference(logits: "Tensor") -> "Tensor":
        return logits[0, -1, right] - logits[0, -1, wrong]

    result = _sweep(lens, corrupted, cache, difference, point, heads)
    assert result.baseline is not None
    found = Patched(
        point,
        lens.to_single_str_token(right),
        lens.to_single_str_token(wrong),
        difference(clean_logits).item(),
        result.baseline.item(),
        result.values,
        _head_labels(result.values) if heads else _position_labels(lens, clean, corrupted),
    )
    if found.clean == found.corrupted:
        raise InputError(
            f"Both prompts give the same logit difference between {found.answer!r} and "
            f"{found.wrong!r}, {found.clean:.4g}, so there is nothing to restore. Pass prompts "
            "that differ, or other answers."
        )
    return found


def _sweep(
    lens: "LensModel",
    corrupted: str,
    cache: "ActivationCache",
    metric: "MetricFunction",
    point: str,
    heads: bool,
) -> "PatchingResult":
    """The metric with the clean activation at each place, and without any."""
    from lensbridge import patching

    setter = patching.layer_head_vector_patch_setter if heads else patching.layer_pos_patch_setter
    axes = ("layer", "head" if heads else "pos")
    result = patching.generic_activation_patch(
        lens, corrupted, cache, metric, setter, point, axes, baseline=True
    )
    assert isinstance(result, patching.PatchingResult)
    return result


def _answers(
    lens: "LensModel", clean: "Tensor", corrupted: "Tensor", asked: tuple[str | None, str | None]
) -> tuple[int, int]:
    """The ids of the two answers; by default the likeliest token after each prompt."""
    right, wrong = (
        int(logits[0, -1].argmax()) if one is None else lens.to_single_token(one)
        for one, logits in zip(asked, (clean, corrupted), strict=True)
    )
    if right == wrong:
        raise InputError(
            f"Both answers are {lens.to_single_str_token(right)!r}, so their logits do not differ. "
            "Pass two tokens: --answer and --wrong."
        )
    return right, wrong


def _head_labels(values: "Tensor") -> list[str]:
    return [f"head {i}" for i in range(values.shape[1])]


def _position_labels(lens: "LensModel", clean: str, corrupted: str) -> list[str]:
    """Each token, or both where the prompts differ."""
    import torch

    from lensbridge.inputs.position_labels import PositionLabels

    ids = torch.cat([lens.to_tokens(clean), lens.to_tokens(corrupted)])
    return list(PositionLabels(ids, lens.tokens).texts)


def _summary(found: Patched) -> str:
    return (
        f"logit of {token(found.answer)} minus logit of {token(found.wrong)}: "
        f"clean {found.clean:.3f}, corrupted {found.corrupted:.3f}"
    )


def _grid(found: Patched, heads: bool) -> Grid:
    shares = found.restored.tolist()
    columns = found.columns if heads else numbered(found.columns)
    title = f"{found.point} patched from clean into corrupted: percent of the difference restored"
    cells = [[Cell(percent(one), one) for one in row] for row in shares]
    return Grid(title, "layer", [str(i) for i in range(len(shares))], columns, cells)


def _picture(found: Patched, heads: bool) -> "Picture":
    from lensbridge.viz import plot

    shares = found.restored
    return plot(
        [[None if one != one else one for one in row] for row in shares.tolist()],
        x=found.columns,
        y=[str(i) for i in range(len(shares))],
        title=f"{found.point} patched from the clean run: {found.answer!r} or {found.wrong!r}?",
        axes=("layer", "head" if heads else "position"),
        unit="share of the logit difference restored",
    )
