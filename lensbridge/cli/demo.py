"""`lensbridge demo`: three analyses on the bundled model, and an HTML report."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, redirect_stdout
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lensbridge import __version__
from lensbridge.cli.opening import quiet_transformers
from lensbridge.cli.options import AsJson
from lensbridge.cli.output import show_json
from lensbridge.cli.pictures import check_folder

if TYPE_CHECKING:
    from lensbridge.demo.report import Results
    from lensbridge.model import LensModel
    from lensbridge.viz.report import Finding

T = TypeVar("T")

STEPS = 4
PROMPTS = 8


EXAMPLES = ("lensbridge demo", "lensbridge demo --out report.html", "lensbridge demo --json")


def run(
    out: Annotated[Path, typer.Option(metavar="PATH", help="Where to write the report.")] = Path(
        "lensbridge-demo.html"
    ),
    as_json: AsJson = False,
) -> int:
    """Run three classic analyses on the bundled model and write an HTML report.

    Raises:
        LensbridgeError: an analysis fails its own check.
        OSError: the report cannot be written.
    """
    check_folder(out)  # before the work, not after it
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        print(f"lensbridge {__version__}: demo")
        results = _analyse()
        from lensbridge.demo.report import findings, render

        page = render(results)
        out.write_text(page, encoding="utf-8")
    if as_json:
        show_json({"report": out.resolve(), "findings": list(map(vars, findings(results)))})
        return 0
    print(f"\n{_table(findings(results))}\n\nReport: {out.resolve()} ({len(page) / 1000:.0f} kB)")
    return 0


def _analyse() -> "Results":
    started = perf_counter()
    with ExitStack() as quiet:
        model = _step(1, "load the demo model", lambda: _load(quiet))
        from lensbridge.demo import report, text, workflows

        prompts = [text.john_and_mary(), *text.held_out_handovers(PROMPTS - 1)]
        patching = _step(
            2, "patch activations", lambda: workflows.patch_positions(model, text.eiffel_tower())
        )
        attribution = _step(
            3, "attribute logits to heads", lambda: workflows.attribute_heads(model, prompts)
        )
        print(f"      all terms sum to the logit difference within {attribution.error:.1e} logits")
        induction = _step(4, "score induction heads", lambda: workflows.score_induction(model))
    closing = _closing(perf_counter() - started)
    return report.Results(_about(model), closing, patching, attribution, induction)


def _step(number: int, what: str, work: Callable[[], T]) -> T:
    print(f"[{number}/{STEPS}] {what:<28}", end="", flush=True)
    started = perf_counter()
    result = work()
    print(f"{perf_counter() - started:5.1f} s", flush=True)
    return result


def _load(quiet: ExitStack) -> "LensModel":
    quiet.enter_context(quiet_transformers())
    from lensbridge import load

    return load("demo")


def _about(model: "LensModel") -> str:
    cfg = model.cfg
    size = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"Three classic analyses on the bundled model: {cfg.original_architecture}, "
        f"{cfg.n_layers} layers of {cfg.n_heads} heads, d_model {cfg.d_model}, "
        f"{size / 1e6:.1f} million parameters, exactly as HuggingFace transformers runs it."
    )


def _closing(seconds: float) -> str:
    import torch
    import transformers

    versions: tuple[Any, ...] = (__version__, torch.__version__, transformers.__version__)
    return (
        "Made by `lensbridge demo` (lensbridge {}, torch {}, transformers {})".format(*versions)
        + f" in {seconds:.1f} seconds, loading included."
    )


def _table(findings: "list[Finding]") -> str:
    indent = max(len(finding.topic) for finding in findings) + 2
    columns = min(get_terminal_size().columns, 100)
    return "\n".join(line for one in findings for line in _lines(one, indent, columns))


def _lines(finding: "Finding", indent: int, columns: int) -> list[str]:
    remark = fill(
        finding.remark.replace("`", ""),
        width=max(columns, indent + 40),
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
    )
    return [f"{finding.topic:<{indent}}{finding.value}", remark]
