"""A table as one heatmap: its last axis from left to right, the others from top to bottom."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import isfinite, prod
from typing import Any, Protocol

from lensbridge.errors import InputError
from lensbridge.viz.heatmap import Heatmap, Scale

MOST_CELLS = 20_000


class Table(Protocol):
    """Numbers on axes: a tensor, or an array."""

    @property
    def shape(self) -> Sequence[int]:
        """The lengths of its axes."""

    def reshape(self, *shape: int) -> Any:
        """The same numbers on other axes."""


def heatmap_of(
    table: Table,
    axes: Mapping[str, Sequence[str]],
    title: str = "",
    *,
    digits: int | None = None,
    advice: str = "",
    unit: str = "",
) -> Heatmap:
    """Draw a table.

    Args:
        table: the numbers; those that are not finite are left out.
        axes: the name of each axis and the labels of its entries, in the table's order.
        title: title of the picture.
        digits: decimals written into the cells; None writes no numbers.
        advice: added to the error if the table has too many cells for a picture.
        unit: what is measured, for the legend.

    Raises:
        InputError: the table has no cells, or too many.
    """
    if not axes or not 0 < prod(table.shape) <= MOST_CELLS:
        raise InputError(
            f"A picture has 1 to {MOST_CELLS:,} cells; this one would have {list(table.shape)} of "
            f"{list(axes)}. {advice}".rstrip()
        )
    *upper, across = axes
    rows = [" ".join(parts) for parts in product(*(axes[name] for name in upper))]
    cells = [
        [value if isfinite(value) else None for value in row]
        for row in table.reshape(len(rows), -1).tolist()
    ]
    return Heatmap(
        title,
        cells,
        rows,
        axes[across],
        scale=Scale.around_zero(cells, unit=unit),
        axes=(", ".join(upper), across),
        digits=digits,
    )
