"""Rows: copies of the base run that start at a layer, with the stream that they have there.

What comes before that layer is not run again. This gives what whole runs give only if the model can
be started there, so rows in which nothing is changed go along: `same` holds their logits against
those of the base run, and `started_late` says why where a model cannot be started.
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
    """Take rows through some layers.

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
    """What comes of rows that start at a layer, or why they cannot start there.

    Args:
        layer: where they start.
        run: runs them; it gives None where unchanged rows do not arrive at the unpatched logits.
    """
    try:
        outcome = run()
    except Exception as error:  # whatever a native model raises when it is started late
        return f"starting at layer {layer} raised {type(error).__name__}: {error}"
    return f"started at layer {layer} the model gives other logits" if outcome is None else outcome


def same(found: Tensor, wanted: Tensor, kernels: bool = False) -> bool:
    """Whether two logits are the same up to the rounding of another batch size.

    Parts of a model in float64 may compute in float32.

    Args:
        found: logits.
        wanted: others.
        kernels: whether attention may have come from another kernel. In bfloat16 two kernels can be
            as far from one another as each is from the truth.
    """
    if found.shape != wanted.shape:
        return False
    wide, eps = wanted.abs().max(), max(torch.finfo(wanted.dtype).eps, 1e-9)
    most = max(0.05, 20 * eps) if kernels else 0.05
    return bool((found - wanted).abs().max() <= wide * min(most, 1000 * eps))
