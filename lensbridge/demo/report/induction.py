"""Induction as a finding and a section."""

from lensbridge.demo.report.heads import head_grid, head_name
from lensbridge.demo.report.snippets import INDUCTION
from lensbridge.demo.workflows import Induction
from lensbridge.viz import Heatmap, Html, Lines, Scale, report
from lensbridge.viz.report import Finding, Section


def finding(result: Induction) -> Finding:
    """The top head's score, and how repetition changes the loss."""
    first, second = result.halves
    return Finding(
        "Induction",
        f"{head_name(result.top)} scores {result.scores[result.top]:.2f}",
        f"The loss goes from {first:.2f} nats on the first copy of random words to {second:.2f} "
        "on the second.",
    )


def section(result: Induction) -> Section:
    """Scores, losses and the top head's pattern."""
    parts = (
        report.paragraph(
            f"The model reads {result.period} random words, twice. At the second copy of a word, "
            "an induction head attends to the word that followed the first copy, and so predicts "
            f"the next word. A head's score is its mean attention {result.period - 1} positions "
            "back from the second copy (`hook_pattern`)."
        ),
        report.side_by_side(
            report.stacked(_scores(result), _loss(result)),
            _pattern(result),
        ),
        report.code(INDUCTION),
    )
    return Section("Induction: which heads continue a repeated sequence?", "induction", parts)


def _scores(result: Induction) -> Html:
    scale = Scale(1.0, diverging=False, unit="attention on the induction stripe")
    return report.figure(
        head_grid(result.scores.tolist(), scale, result.top),
        "Induction scores",
        "1 means that the head, at the second copy of a word, attends only to what followed the "
        "first. A frame marks the highest score.",
        beside=True,
    )


def _loss(result: Induction) -> Html:
    first, second = result.halves
    picture = Lines(
        "",
        {"loss": result.loss.tolist()},
        [str(j + 1) for j in range(len(result.loss))],
        axes=("predicted position", "loss in nats"),
        split=(result.period, "first copy", "second copy"),
        reference=(result.chance, "a uniform guess among the words"),
        measures=(470.0, 290.0),
    )
    return report.figure(
        picture.svg(),
        "Loss of each prediction",
        f"{first:.2f} nats on average in the first copy, {second:.2f} in the second. The word "
        "that begins the second copy cannot be predicted.",
    )


def _pattern(result: Induction) -> Html:
    square = result.pattern.tolist()
    picture = Heatmap(
        title="",
        values=[
            [v if key <= query else None for key, v in enumerate(row)]
            for query, row in enumerate(square)
        ],
        rows=result.tokens,
        columns=result.tokens,
        scale=Scale(1.0, diverging=False, unit="attention"),
        axes=("from", "to"),
        digits=None,
        most=(390.0, 390.0),
    )
    return report.figure(
        picture.svg(),
        f"Attention of {head_name(result.top)} on one sequence",
        "Each row is a query position, each column a key position. The stripe in the lower half is "
        "induction.",
    )
