"""`lensbridge plan`: what a run takes, before the weights are loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lensbridge.cli.options import AsJson, Loading, Model
from lensbridge.cli.output import note, show, show_json
from lensbridge.cli.points import Batch, Length, Point
from lensbridge.cli.working import working
from lensbridge.errors import InputError
from lensbridge.viz.numbers import bytes_as_text

if TYPE_CHECKING:
    from torch import Tensor

    from lensbridge.cli.weightless import Weightless

EXAMPLES = (
    "lensbridge plan demo",
    "lensbridge plan gpt2-xl --batch 8 --length 512 --point resid_post",
    "lensbridge plan meta-llama/Llama-3.1-70B --dtype bfloat16 --json",
)


@dataclass(frozen=True)
class Kind:
    """The points that one row of the table stands for, all layers together."""

    name: str
    points: int
    shape: list[int]
    dtype: str
    bytes: int


def run(
    model: Model,
    loading: Loading,
    point: Point = None,
    batch: Batch = 1,
    length: Length = 128,
    as_json: AsJson = False,
) -> int:
    """Tell what a run with a cache takes: parameters, bytes of each point, size of the cache.

    Only the config is read: the model is made without weights, so that a large one costs nothing.
    With --point, the cache holds these points; otherwise what a cache holds by default.

    Raises:
        LensbridgeError: there is no such model or point, or no description is registered for it.
    """
    from lensbridge.cli.weightless import weightless

    with working(f"planning {model}"):
        found = weightless(model, loading)
        told = _told(found, model, point, batch, length)
    if as_json:
        show_json(told)
    else:
        _print(told)
    return 0


def _told(
    found: "Weightless", model: str, asked: list[str] | None, batch: int, length: int
) -> dict[str, Any]:
    from lensbridge.cli.weightless import stored_bytes

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
        "weight_bytes": found.weight_bytes,
        "batch": batch,
        "length": length,
        "points": None,
        "cache_bytes": None,
        "memory_available": _available(),
    }
    try:
        cache = found.cache(found.names(asked) if asked else None, batch, length)
    except InputError as error:
        return {**told, "reason": str(error)}
    kinds = [vars(one) for one in _kinds(cache)]
    return {**told, "points": kinds, "cache_bytes": stored_bytes(list(cache.values()))}


def _kinds(cache: "Mapping[str, Tensor]") -> Iterator[Kind]:
    """One entry for each row of the table of points, shape and dtype."""
    from lensbridge.points.names import template

    groups: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name, value in cache.items():
        key = (template(name), tuple(value.shape), str(value.dtype).removeprefix("torch."))
        groups.setdefault(key, []).append(value.nbytes)
    for (name, shape, dtype), sizes in groups.items():
        yield Kind(name, len(sizes), list(shape), dtype, sum(sizes))


def _available() -> int | None:
    """Free memory of this machine in bytes, or None where it is not known."""
    import torch

    from lensbridge.sweeps.memory import free_bytes

    return free_bytes(torch.device("cpu"))


def _print(told: Mapping[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    head = (
        f"{told['class']}, read as '{told['architecture']}': {told['layers']} layers, "
        f"d_model {told['d_model']}\n"
        f"weights      {told['parameters']:,} parameters, {bytes_as_text(told['weight_bytes'])} "
        f"in {told['dtype']}"
    )
    if told["points"] is None:
        show(head)
        note(told["reason"])
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for label in ("point", "layers", "shape", "dtype", "bytes, all layers"):
        table.add_column(label, justify="left" if label in ("point", "dtype") else "right")
    for one in sorted(told["points"], key=lambda one: -one["bytes"]):
        shape = " x ".join(map(str, one["shape"]))
        size = bytes_as_text(one["bytes"])
        table.add_row(one["name"], str(one["points"]), shape, one["dtype"], size)
    needed = told["weight_bytes"] + told["cache_bytes"]
    free = told["memory_available"]
    left = "" if free is None else f"; this machine has {bytes_as_text(free)} free"
    show(
        head,
        f"cache        {bytes_as_text(told['cache_bytes'])} for {told['batch']} x "
        f"{told['length']} tokens (what points share counts once)\n"
        f"together     {bytes_as_text(needed)}{left}",
        table,
    )
