"""`lensbridge run`: an experiment from a JSON file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.opening import computing, opened
from lensbridge.cli.options import AsJson, Loading, Model
from lensbridge.cli.output import note, printable, show, show_json
from lensbridge.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lensbridge.experiments import Experiment, ExperimentResult

EXAMPLES = (
    "lensbridge run experiment.json demo",
    "lensbridge run experiment.json gpt2 --out result.safetensors",
    "lensbridge run experiment.json demo --json",
)

File = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A JSON file that Experiment.to_json wrote; - reads it from stdin.",
    ),
]


def run(
    experiment: File,
    model: Model,
    loading: Loading,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write logits, activations, gradients and the rest to a safetensors file, for "
            "ExperimentResult.load.",
        ),
    ] = None,
    tensors: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The tensors of the experiment, if in another file."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run an experiment from a file: its metrics, its sweep and its text are shown.

    Raises:
        LensbridgeError: the file is no experiment, or does not fit the model.
    """
    asked = _experiment(experiment, tensors)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent} for {out.name}. Create it first.")
    lens = opened(model, loading)
    with computing("running the experiment"):
        result = lens.run(asked)
    if out is not None:
        result.save(out)
    if as_json:
        show_json({"model": model, **_as_json(result)})
    else:
        _print(result)
    if out is not None:
        note(f"Wrote {out}.")
    return 0


def _experiment(path: str, tensors: Path | None) -> "Experiment":
    from lensbridge.experiments import Experiment

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return Experiment.from_json(text, tensors)


def _as_json(result: "ExperimentResult") -> dict[str, Any]:
    swept = result.sweep
    return {
        "metrics": result.metrics,
        "loss": result.loss,
        "sweep": None if swept is None else {"axes": swept.axis_labels, "values": swept.values},
        "text": result.text,
        "kept": [] if result.cache is None else list(result.cache),
    }


def _print(result: "ExperimentResult") -> None:
    for name, value in result.metrics.items():
        show(printable(f"{name}: {_numbers(value)}"))
    if result.loss is not None:
        show(f"loss: {_numbers(result.loss)}")
    if result.sweep is not None:
        _print_sweep(result)
    texts = [result.text] if isinstance(result.text, str) else result.text or []
    for text in texts:
        show(printable(text))
    if result.cache is not None:
        note(f"{len(result.cache)} activations were kept; --out writes them to a file.")


def _print_sweep(result: "ExperimentResult") -> None:
    swept = result.sweep
    assert swept is not None
    metrics = swept.metric_names if swept.has_metric_axis else list(result.metrics)
    values = swept.mean() if swept.has_metric_axis else swept.mean().unsqueeze(0)
    for metric, row in zip(metrics, values, strict=True):
        for cell, value in zip(swept.axis_labels["cell"], row, strict=True):
            show(printable(f"{metric} of cell {cell}: {_numbers(value)}"))


def _numbers(value: "Tensor") -> str:
    return ", ".join(f"{one:.4f}" for one in value.flatten().tolist())
