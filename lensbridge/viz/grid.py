"""A sweep as one heatmap: its last axis from left to right, the others from top to bottom."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

from lensbridge.errors import InputError
from lensbridge.viz import Heatmap, Scale

if TYPE_CHECKING:
    from lensbridge.sweeps.result import PatchingResult

MOST_CELLS = 20_000


def heatmap_of(
    result: "PatchingResult", title: str, digits: int | None, fixed: Mapping[str, Any]
) -> Heatmap:
    """See `PatchingResult.plot`."""
    axes, table = labels_of(result), result.mean().detach().cpu()
    for name, value in fixed.items():
        place = _place(axes, name, value)
        table = table.select(list(axes).index(name), place)
        del axes[name]
    if not axes or prod(table.shape) > MOST_CELLS:
        raise InputError(
            f"A picture has 1 to {MOST_CELLS:,} cells; this one would have {list(table.shape)} of "
            f"{list(axes)}. Say which to draw: plot(layer=3), plot(metric='loss')."
        )
    *upper, across = axes
    rows = [" ".join(parts) for parts in product(*(axes[name] for name in upper))]
    cells = [
        [value if isfinite(value) else None for value in row]
        for row in table.reshape(len(rows), -1).tolist()
    ]
    metrics = [str(fixed["metric"])] if "metric" in fixed else result.metric_names
    unit = metrics[0] if len(metrics) == 1 and metrics != ["metric"] else ""
    return Heatmap(
        title or ", ".join(metrics),
        cells,
        rows,
        axes[across],
        scale=Scale.around_zero(cells, unit=unit),
        axes=(", ".join(upper), across),
        digits=digits,
    )


def labels_of(result: "PatchingResult") -> dict[str, Sequence[str]]:
    """The axes of a result and what their entries are called."""
    grid = result.grid
    if grid.axis_values is None:
        swept: dict[str, Sequence[str]] = {"cell": [str(i) for i in range(len(grid.rows))]}
    else:
        pairs = zip(grid.axis_names, grid.axis_values, strict=True)
        swept = {name: [str(value) for value in axis] for name, axis in pairs}
    if result.patch_type_names is not None:
        swept["patch_type"] = result.patch_type_names
    return {**({"metric": result.metric_names} if result.has_metric_axis else {}), **swept}


def _place(axes: Mapping[str, Sequence[str]], name: str, value: Any) -> int:
    if name not in axes:
        raise InputError(f"There is no axis {name!r}; there are {list(axes)}.")
    if str(value) not in axes[name]:
        raise InputError(f"There is no {name} {value!r}; there are {', '.join(axes[name])}.")
    return list(axes[name]).index(str(value))
