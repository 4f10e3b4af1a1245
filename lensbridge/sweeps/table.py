"""Methods of `PatchingResult` that show its numbers: as a data frame and as a heatmap."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.sweeps.grid import Grid, pandas
from lensbridge.viz import Drawn, Heatmap
from lensbridge.viz.drawing import heatmap_of
from lensbridge.viz.heatmap import Digits

POSITION_AXES = ("pos", "dest_pos", "src_pos")
"""The axes that count positions."""


class TableMethods(Drawn):
    """The numbers of a sweep as a table, and the labels of its axes."""

    values: Tensor
    grid: Grid
    metric_names: list[str]
    reduced: bool
    has_metric_axis: bool
    patch_type_names: list[str] | None
    positions: PositionLabels | None
    texts: "list[str | list[str] | None] | None"

    @abstractmethod
    def mean(self) -> Tensor:
        """Mean over examples. Shapes: `[metric?, *axes]`"""

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each metric, cell and example.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return pandas().DataFrame(list(self._records()))

    def _records(self) -> Iterator[dict[str, Any]]:
        values, grid = self.values.detach().cpu(), self.grid
        values = values if self.has_metric_axis else values.unsqueeze(0)
        values = values.unsqueeze(-1) if self.reduced else values
        for metric, table in zip(self.metric_names, values, strict=True):
            for i, row in enumerate(grid.rows):
                place = (i,) if grid.axis_values is None else grid.place(row)
                about = {"metric": metric, **self._named(row)}
                if grid.names is not None:
                    about["name"] = grid.names[i]
                texts = self._texts_of(i)
                for example, value in enumerate(table[place].tolist()):
                    kept: dict[str, Any] = {} if self.reduced else {"example": example}
                    wrote = {} if texts is None else {"text": texts[example]}
                    yield {**about, **kept, **wrote, "value": value}

    def _texts_of(self, cell: int) -> list[str] | None:
        """What a cell wrote for each row of a table; None if there is no text for each."""
        found = None if self.texts is None else self.texts[cell]
        texts = [found] if isinstance(found, str) else found
        return None if texts is None or (self.reduced and len(texts) > 1) else texts

    def _named(self, row: Sequence[int]) -> dict[str, Any]:
        named: dict[str, Any] = dict(zip(self.grid.axis_names, row, strict=True))
        if self.patch_type_names is not None:
            named["patch_type_name"] = self.patch_type_names[named["patch_type"]]
        return named

    def plot(self, title: str = "", *, digits: Digits = "auto", **fixed: Any) -> Heatmap:
        """The mean over examples as a heatmap.

        The last axis goes from left to right, all others together from top to bottom.

        Args:
            title: above the picture.
            digits: decimals written into the cells; "auto" chooses them, None writes no numbers.
            fixed: an axis and the entry of it to draw: `layer=3`, `patch_type="q"`,
                `metric="loss"`.

        Raises:
            InputError: no such axis or entry, or more cells than fit into a picture.
        """
        axes, entries = self.axis_labels, self._entries
        table = self.mean().detach().cpu()
        if self.has_metric_axis and len(self.metric_names) == 1:
            fixed = {"metric": self.metric_names[0], **fixed}
        for name, value in fixed.items():
            entry = _entry(entries, name, value)
            table = table.select(list(axes).index(name), entry)
            del axes[name]
        metrics = [str(fixed["metric"])] if "metric" in fixed else self.metric_names
        named = metrics != ["metric"]
        return heatmap_of(
            table,
            axes,
            title or (", ".join(metrics) if named else ""),
            digits=digits,
            advice="Say which to draw: plot(layer=3), plot(metric='loss').",
            unit=metrics[0] if len(metrics) == 1 else "",
        )

    @property
    def axis_labels(self) -> dict[str, Sequence[str]]:
        """The axes and the names of their entries, without the batch axis.

        Positions are named by their tokens, if the examples are of the same length.
        """
        return {name: self._labels(name, entries) for name, entries in self._entries.items()}

    def _labels(self, name: str, entries: Sequence[str]) -> Sequence[str]:
        if self.positions is None or name not in POSITION_AXES:
            return entries
        return self.positions.along(map(int, entries))

    @property
    def _entries(self) -> dict[str, Sequence[str]]:
        """The same, with positions as numbers: what `plot` takes."""
        grid = self.grid
        if grid.axis_values is None:
            numbers = [str(i) for i in range(len(grid.rows))]
            swept: dict[str, Sequence[str]] = {"cell": grid.names or numbers}
        else:
            pairs = zip(grid.axis_names, grid.axis_values, strict=True)
            swept = {name: [str(value) for value in axis] for name, axis in pairs}
        if self.patch_type_names is not None:
            swept["patch_type"] = self.patch_type_names
        return {**({"metric": self.metric_names} if self.has_metric_axis else {}), **swept}


def _entry(axes: Mapping[str, Sequence[str]], name: str, value: Any) -> int:
    if name not in axes:
        raise InputError(f"There is no axis {name!r}; there are {list(axes)}.")
    if str(value) not in axes[name]:
        raise InputError(f"There is no {name} {value!r}; there are {', '.join(axes[name])}.")
    return list(axes[name]).index(str(value))
