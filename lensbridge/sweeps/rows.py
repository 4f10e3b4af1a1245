"""Rows: copies of the base run that start at a later layer, from the stream before it.

Whether a model can be started at a layer is tested by rows that change nothing. `same` compares
their logits with those of the base run, and `started_late` gives the reason if a start fails.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from lensbridge.sweeps.base_run import BaseRun

Outcome = TypeVar("Outcome")


def run_rows(
    base: BaseRun,
    rows: Tensor,
    hooks: Iterable[tuple[Any, Any]],
    start: int,
    stop: int | None = None,
    *,
    end: int | None = None,
    cache: Any = None,
    **forward: Any,
) -> Tensor:
    """Run rows over a span of layers.

    Args:
        base: the unpatched run; each row is a copy of its batch.
        rows: the stream before the first of these layers, one row after the other.
        hooks: pairs for `fwd_hooks`.
        start: the first layer.
        stop: the layer after the last one; None: to the logits.
        end: the position after the last one that the rows hold; None: they go to the end.
        cache: keys and values of the positions before the first one that the rows hold.
        forward: other arguments of `forward`.

    Shapes: rows `[row * batch, pos, d_model]` -> the same, or logits.
    """
    mask = base.cache.attention_mask
    if mask is not None:
        forward["attention_mask"] = mask[:, :end].repeat(len(rows) // base.batch, 1)
    return base.model.run_with_hooks(
        rows, hooks, start_at_layer=start, stop_at_layer=stop, past_key_values=cache, **forward
    )


def started_late(layer: int, run: Callable[[], Outcome | None]) -> Outcome | str:
    """What a function gives that runs rows from a layer on, or why rows cannot start there.

    Args:
        layer: where the rows start.
        run: the function; it gives None if unchanged rows do not arrive at the unpatched logits.
    """
    try:
        outcome = run()
    except Exception as error:  # whatever a native model raises when it is started late
        return f"starting at layer {layer} raised {type(error).__name__}: {error}"
    return f"started at layer {layer} the model gives other logits" if outcome is None else outcome


def same(found: Tensor, wanted: Tensor, kernels: bool = False) -> bool:
    """Whether logits are equal up to rounding, which depends on the size of the batch.

    In float64 too, the tolerance allows for parts of the model that compute in float32.

    Args:
        found: logits.
        wanted: those that they should be.
        kernels: whether attention may have used another kernel. In bfloat16 the results of two
            kernels can differ from each other as much as each does from the exact result.
    """
    if found.shape != wanted.shape:
        return False
    wide, eps = wanted.abs().max(), max(torch.finfo(wanted.dtype).eps, 1e-9)
    most = max(0.05, 20 * eps) if kernels else 0.05
    return bool((found - wanted).abs().max() <= wide * min(most, 1000 * eps))
