"""`lensbridge plan`: what a run takes, before the weights are loaded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.options import AsJson, Loading, Model
from lensbridge.cli.output import note, show, show_json
from lensbridge.cli.points import Batch, Length, Point
from lensbridge.cli.working import working
from lensbridge.errors import InputError
from lensbridge.viz.numbers import bytes_as_text

if TYPE_CHECKING:
    from lensbridge.cli.weightless import Weightless
    from lensbridge.plans.plan import Plan

EXAMPLES = (
    "lensbridge plan demo",
    "lensbridge plan gpt2-xl --batch 8 --length 512 --point resid_post",
    "lensbridge plan meta-llama/Llama-3.1-70B --tokens 2048 --dtype bfloat16 --json",
)

Gradients = Annotated[
    bool, typer.Option("--gradients", help="Also keep the gradients of the loss at these points.")
]


def run(
    model: Model,
    loading: Loading,
    point: Point = None,
    batch: Batch = 1,
    length: Length = 128,
    gradients: Gradients = False,
    as_json: AsJson = False,
) -> int:
    """Tell what a run with a cache takes: parameters, bytes of each point, the cache, the peak.

    Only the config is read: the model is made without weights, so that a large one costs nothing.
    With --point, the cache holds these points; otherwise what a cache holds by default.

    Raises:
        LensbridgeError: there is no such model or point, or no description is registered for it.
    """
    from lensbridge.cli.weightless import weightless

    with working(f"planning {model}"):
        found = weightless(model, loading)
        told, plan = _told(found, model, point, batch, length, gradients)
    if as_json:
        points = None if plan is None else [vars(kind) for kind in plan.kinds]
        show_json({**told, "points": points})
    else:
        _print(told, plan)
    return 0


def _told(
    found: "Weightless",
    model: str,
    asked: list[str] | None,
    batch: int,
    length: int,
    gradients: bool,
) -> tuple[dict[str, Any], "Plan | None"]:
    from lensbridge.plans.rehearsal import weight_bytes

    found.check_length(length)
    cfg = found.lens.cfg
    told: dict[str, Any] = {
        "model": model,
        "class": cfg.original_architecture,
        "architecture": cfg.architecture,
        "layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "dtype": str(found.lens.dtype).removeprefix("torch."),
        "parameters": found.parameters,
        "weight_bytes": sum(weight_bytes(found.lens.hf_model).values()),
        "batch": batch,
        "length": length,
        "cache_bytes": None,
        "peak_bytes": None,
        "memory_available": _available(),
    }
    try:
        plan = found.plan(found.names(asked) if asked else None, batch, length, gradients)
    except InputError as error:
        return {**told, "reason": str(error)}, None
    sizes = {"cache_bytes": plan.total, "peak_bytes": sum(plan.peak.values())}
    return {**told, **sizes, "assumes": list(plan.assumes)}, plan


def _available() -> int | None:
    """Free memory of this machine in bytes, or None where it is not known."""
    import torch

    from lensbridge.sweeps.memory import free_bytes

    return free_bytes(torch.device("cpu"))


def _print(told: Mapping[str, Any], plan: "Plan | None") -> None:
    head = (
        f"{told['class']}, read as '{told['architecture']}': {told['layers']} layers, "
        f"d_model {told['d_model']}\n"
        f"weights      {told['parameters']:,} parameters, {bytes_as_text(told['weight_bytes'])} "
        f"in {told['dtype']}"
    )
    if plan is None:
        show(head)
        note(told["reason"])
        return
    needed = told["weight_bytes"] + told["peak_bytes"]
    free = told["memory_available"]
    left = "" if free is None else f"; this machine has {bytes_as_text(free)} free"
    show(
        head,
        f"cache        {bytes_as_text(plan.total)} for {told['batch']} x "
        f"{told['length']} tokens (what points share counts once)\n"
        f"at its peak  {bytes_as_text(told['peak_bytes'])} at most, the cache included\n"
        f"together     {bytes_as_text(needed)}{left}",
        *(f"assumed      {one}" for one in plan.assumes),
        _table(plan),
    )


def _table(plan: "Plan") -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for label in ("point", "layers", "shape", "dtype", "bytes, all layers"):
        table.add_column(label, justify="left" if label in ("point", "dtype") else "right")
    for one in plan.kinds:
        name, points, shape, dtype, _, size = one.cells()
        table.add_row(name, points, shape, dtype, size)
    return table
