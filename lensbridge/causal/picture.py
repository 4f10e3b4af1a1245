"""The scores of one unit as a heatmap: its last axis from left to right, the others downwards."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from lensbridge.errors import InputError
from lensbridge.viz import Heatmap, Scale
from lensbridge.viz.grid import MOST_CELLS

if TYPE_CHECKING:
    from lensbridge.causal.result import AttributionResult


def heatmap_of(result: "AttributionResult", unit: str, title: str, digits: int | None) -> Heatmap:
    """See `AttributionResult.plot`."""
    table = result.mean(unit).detach().cpu()
    axes = [name for name in result.axis_names[unit] if name != "example"] or ["position"]
    table = table if table.ndim else table.unsqueeze(0)
    if table.numel() > MOST_CELLS:
        raise InputError(
            f"A picture has up to {MOST_CELLS:,} cells; {unit} has {list(table.shape)} of {axes}. "
            "Draw it without positions, or lensbridge.viz.Heatmap of a part of it."
        )
    labels = [_labels(result, name, size) for name, size in zip(axes, table.shape, strict=True)]
    *upper, across = labels
    rows = [" ".join(parts) for parts in product(*upper)]
    cells = [
        [None if value != value else value for value in row]
        for row in table.reshape(len(rows), -1).tolist()
    ]
    named = ", ".join(axes[:-1]), axes[-1]
    return Heatmap(
        title, cells, rows, across, scale=Scale.around_zero(cells), axes=named, digits=digits
    )


def _labels(result: "AttributionResult", axis: str, size: int) -> Sequence[str]:
    ends = {"sender": result.senders, "receiver": result.receivers}
    return [str(node) for node in ends[axis]] if axis in ends else [str(i) for i in range(size)]
