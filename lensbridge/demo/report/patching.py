"""Activation patching as a finding and a section."""

from lensbridge.demo.report.snippets import PATCHING
from lensbridge.demo.workflows import PATCHED, Patching
from lensbridge.viz import Heatmap, Html, Scale, report
from lensbridge.viz.markup import visible
from lensbridge.viz.numbers import signed
from lensbridge.viz.report import Finding, Section


def finding(result: Patching) -> Finding:
    """Where the answer enters, and when it has moved to where it is needed."""
    enters = result.grids["resid_pre"][0]
    token = visible(result.clean.tokens[int(enters.argmax())])
    return Finding(
        "Activation patching",
        f"{float(enters.max()):.0%} restored at {token}",
        "by `resid_pre` of layer 0, copied from the clean run at that one position. The answer "
        f"reaches the last position {_arrival(result)}.",
    )


def _arrival(result: Patching) -> str:
    layer, last = result.arrival, len(result.grids["resid_pre"]) - 1
    return f"in layer {last}" if layer is None else f"before layer {layer}"


def section(result: Patching) -> Section:
    """The three grids and the two runs."""
    prompt = result.prompt
    right, wrong = visible(prompt.answer), visible(prompt.rival)
    parts = (
        report.paragraph(
            f"The model reads “{prompt.text}” and should say `{right}`; after "
            f"“{prompt.corrupted}” it should say `{wrong}`. Each cell is one run on the second "
            "text with one activation copied from the first, at one layer and one position. The "
            f"metric is the logit of `{right}` minus the logit of `{wrong}`, scaled so that 0 is "
            "the corrupted run and 1 the clean one. A frame marks the largest value of each grid."
        ),
        report.side_by_side(*_patch_figures(result), least=280),
        _runs(result),
        report.code(PATCHING),
    )
    return Section("Activation patching: where is the city decided?", "patching", parts)


_PATCHES = {
    "resid_pre": (
        "Residual stream",
        "`resid_pre`: the residual stream at the start of a layer. The answer moves from the "
        "landmark to the last position.",
    ),
    "attn_out": (
        "Attention",
        "`attn_out`: what attention adds in a layer. Attention moves information from one position "
        "to another.",
    ),
    "mlp_out": ("MLP", "`mlp_out`: what the MLP adds in a layer, at the same position."),
}


def _patch_figures(result: Patching) -> list[Html]:
    grids = [grid.tolist() for grid in result.grids.values()]
    scale = Scale.around_zero(*grids, unit="fraction restored", least=1.0)
    return [report.figure(_patch_grid(result, point, scale), *_PATCHES[point]) for point in PATCHED]


def _patch_grid(result: Patching, point: str, scale: Scale) -> Html:
    grid = result.grids[point].tolist()
    return Heatmap(
        title="",
        values=[list(layers) for layers in zip(*grid, strict=True)],
        rows=result.clean.tokens,
        columns=list(map(str, range(len(grid)))),
        scale=scale,
        axes=("patched position", "layer"),
        marked=[result.best(point)[::-1]],
    ).svg()


def _changed(result: Patching) -> str:
    """Which tokens differ between the two texts; the axes of the grids show the clean one."""
    pairs = zip(result.clean.tokens, result.corrupted.tokens, strict=True)
    changed = [f"`{visible(b)}` in place of `{visible(a)}`" for a, b in pairs if a != b]
    return f"The second text has {', '.join(changed)}; the grids are labelled with the first."


def _runs(result: Patching) -> Html:
    rows = [
        (
            name,
            f"`{visible(run.next)}`",
            f"{run.probability:.1%}",
            signed(run.difference, 2),
        )
        for name, run in (("clean", result.clean), ("corrupted", result.corrupted))
    ]
    fetched = result.grids["attn_out"][:, -1]
    layer = int(fetched.argmax())
    return report.figure(
        report.table(("run", "says", "probability", "logit difference"), rows),
        "The two runs",
        f"{_changed(result)} The answer reaches the last position {_arrival(result)}. Attention "
        f"brings it there, most of all that of layer {layer}, whose output restores "
        f"{float(fetched[layer]):.0%}.",
        beside=True,
    )
