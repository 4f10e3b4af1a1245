"""Direct logit attribution as a finding and a section."""

from torch import Tensor

from lensbridge.demo.report.heads import head_grid, head_name
from lensbridge.demo.report.snippets import ATTRIBUTION
from lensbridge.demo.workflows import Attribution
from lensbridge.demo.workflows.runs import largest
from lensbridge.viz import Bars, ColouredText, Html, Scale, report
from lensbridge.viz.markup import visible
from lensbridge.viz.numbers import rounded, signed
from lensbridge.viz.report import Finding, Section


def finding(result: Attribution) -> Finding:
    """The top head, and whether its ablation confirms the attribution."""
    says = "confirms" if result.confirmed else "does not confirm"
    return Finding(
        "Direct logit attribution",
        f"{head_name(result.top)} writes {signed(float(result.heads[result.top]), 2)} logits",
        f"Ablating it takes the logit difference from {rounded(_mean(result.before), 2)} to "
        f"{rounded(_mean(result.ablated[result.top]), 2)}, which {says} the attribution.",
    )


def section(result: Attribution) -> Section:
    """Contributions and ablations of heads, and the whole sum."""
    first = result.prompts[0]
    parts = (
        report.paragraph(
            f"In “{first.text}” the receiver is `{visible(first.answer)}`, not "
            f"`{visible(first.rival)}`. The logit difference between the two names is a sum: each "
            "head, MLP, embedding and bias adds what it writes at the last position, centred, "
            "divided by the final norm's scale and read in the direction of the two names. All is "
            f"averaged over {len(result.prompts)} sentences whose pairs of names the model never "
            "saw together in training."
        ),
        report.side_by_side(*_grids(result), _attention(result), least=260),
        report.side_by_side(
            _sum(result),
            report.stacked(_ablation(result), report.paragraph(_indirect(result))),
            least=420,
        ),
        report.code(ATTRIBUTION),
    )
    return Section("Direct logit attribution: which head names the receiver?", "attribution", parts)


def _grids(result: Attribution) -> tuple[Html, Html]:
    return (
        _grid(result, result.heads, "Attributed", "What each head writes towards the right name."),
        _grid(
            result,
            result.drops,
            "Lost when ablated",
            "The check: what the logit difference loses when a head's `hook_z` is zeroed at all "
            "positions, later layers' use of that head included. Mind the scale, which is its own.",
        ),
    )


def _grid(result: Attribution, grid: Tensor, title: str, caption: str) -> Html:
    values = grid.tolist()
    scale = Scale.around_zero(values, unit="logits")
    return report.figure(head_grid(values, scale, result.top), title, caption)


def _meaning(written: float, lost: float, confirmed: bool) -> str:
    if not confirmed:
        return "The ablation does not confirm the attribution: less than half of it is lost."
    if lost > 1.5 * written:
        return (
            "The ablation confirms the attribution, and more is lost than the head writes "
            "directly: later parts of the model read it too."
        )
    return "The ablation confirms the attribution."


def _ablation(result: Attribution) -> Html:
    written, lost = float(result.heads[result.top]), float(result.drops[result.top])
    ablated = result.ablated[result.top]
    fall = f"from {rounded(_mean(result.before), 2)} to {rounded(_mean(ablated), 2)}"
    return report.verdict(
        f"{_meaning(written, lost, result.confirmed)} {head_name(result.top)} writes "
        f"{signed(written, 2)} logits; without it the logit difference falls by "
        f"{rounded(lost, 2)}, {fall}, and the right name is ahead in {int((ablated > 0).sum())} "
        f"of {len(ablated)} sentences instead of {int((result.before > 0).sum())}.",
        result.confirmed,
    )


def _indirect(result: Attribution) -> str:
    """The part of the effects that direct contributions of heads do not show."""
    heads, mlps, total = (
        float(term) for term in (result.heads.sum(), result.mlps.sum(), result.before.mean())
    )
    costly = largest(result.drops)
    written, lost = float(result.heads[costly]), float(result.drops[costly])
    return (
        f"Of {rounded(total, 2)} logits, all heads together write {signed(heads, 2)} directly and "
        f"the MLPs {signed(mlps, 2)}. The head that costs most when ablated is "
        f"{head_name(costly)}: {rounded(lost, 2)}, of which {signed(written, 2)} is its direct "
        "write. The rest of its effect passes through later layers, which direct attribution does "
        "not include."
    )


def _attention(result: Attribution) -> Html:
    picture = ColouredText(
        title="",
        tokens=result.tokens,
        values=result.attention.tolist(),
        scale=Scale(1.0, diverging=False, unit="attention"),
    )
    return report.figure(
        picture.fragment(),
        f"Where {head_name(result.top)} looks",
        "Its attention from the last position of the first sentence, most of all to "
        f"`{visible(result.tokens[int(result.attention.argmax())])}`.",
    )


def _sum(result: Attribution) -> Html:
    terms = {
        **result.embeddings,
        **{f"heads of layer {i}": float(row.sum()) for i, row in enumerate(result.heads)},
        **{f"MLP of layer {i}": float(value) for i, value in enumerate(result.mlps)},
        "biases of attention": float(result.attention_biases.sum()),
        **result.constants,
    }
    total, measured = sum(terms.values()), _mean(result.before)
    bars = Bars("", [*terms.values(), total], [*terms, "sum of all terms"], unit="logits")
    return report.figure(
        bars.svg(),
        "Every term of the logit difference",
        f"Averages over the sentences. The sum is the model's own logit difference, "
        f"{signed(measured, 3)}; the largest difference between the two on any sentence is "
        f"{result.error:.1e}.",
    )


def _mean(values: Tensor) -> float:
    return float(values.mean())
