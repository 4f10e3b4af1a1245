"""plot: numbers and labels as a picture. heatmap_of: a table with named axes as one heatmap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, prod
from typing import Any, Literal, TypeAlias

from lensbridge.errors import InputError
from lensbridge.viz.bars import Bars
from lensbridge.viz.heatmap import Digits, Heatmap
from lensbridge.viz.histogram import Histogram
from lensbridge.viz.labels import label_of
from lensbridge.viz.lines import Lines
from lensbridge.viz.panels import Panels
from lensbridge.viz.picture import Picture
from lensbridge.viz.scale import Row, Scale
from lensbridge.viz.tokens import ColouredText

Kind: TypeAlias = Literal["heatmap", "lines", "bars", "histogram", "text"]
"""How `plot` draws."""

MOST_CELLS = 250_000
MOST_BARS = 200
MOST_PANELS = 64


def plot(
    values: Any,
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
    *,
    z: Sequence[Any] | None = None,
    kind: Kind | None = None,
    title: str = "",
    axes: Sequence[str] = (),
    unit: str = "",
    digits: Digits = "auto",
) -> Picture:
    """Draw numbers with labels.

    Args:
        values: a tensor, an array or lists: one axis becomes a line, two a heatmap, three a heatmap
            for each entry of the first. Or a mapping from names to numbers, which become bars, or
            to lists of numbers, which become lines. A result of lensbridge is drawn by its own
            `plot`.
        x: a label for each entry of the last axis: tokens, layers, names of heads.
        y: a label for each entry of the axis before it.
        z: a label for each entry of the first of three axes.
        kind: "heatmap", "lines", "bars", "histogram", or "text" for tokens (`x`) coloured by
            their value; None: as the number of axes says.
        title: written above it.
        axes: names of the axes, in the order of the tensor's.
        unit: what is measured.
        digits: decimals written into cells; "auto" chooses them, None writes no numbers.

    Raises:
        InputError: labels that do not fit, more than three axes, no numbers, or too many.

    Example:
        >>> plot([0.1, 0.7, 0.2], x=["The", " cat", " sat"], kind="bars", title="Attention")
        Bars('Attention', 386 x 110 pixels)
    """
    if isinstance(values, Picture):
        return values
    if x is None and y is None and kind is None and callable(getattr(values, "plot", None)):
        drawn: Picture = values.plot(**({"title": title} if title else {}))
        return drawn
    if isinstance(values, Mapping):
        names, values = list(values), list(values.values())
        single = all(map(_is_number, values))
        kind = kind or ("bars" if single else "lines")
        x, y = (x or names, y) if single else (x, y or names)
    table = _numbers(values)
    shape = _shape(table)
    request = _Request(table, shape, (z, y, x), title, tuple(axes), unit, digits)
    kind = kind or ("lines" if len(shape) == 1 else "heatmap")
    if kind not in _KINDS:
        raise InputError(f"A picture is one of {', '.join(map(repr, _KINDS))}, not {kind!r}.")
    return _KINDS[kind](request)


def heatmap_of(
    table: Any,
    axes: Mapping[str, Sequence[str]],
    title: str = "",
    *,
    digits: Digits = "auto",
    advice: str = "",
    unit: str = "",
) -> Heatmap:
    """Draw a table: its last axis from left to right, the others from top to bottom.

    Args:
        table: a tensor or array; what is not finite is left out.
        axes: the name of each axis and the labels of its entries, in the table's order.
        title: written above it.
        digits: decimals written into the cells; "auto" chooses them, None writes no numbers.
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
    form = "L{}H{}" if upper in (["layer", "head"], ["layer", "head_index"]) else ""
    entries = product(*(axes[name] for name in upper))
    rows = [form.format(*parts) if form else " ".join(parts) for parts in entries]
    cells = _cells(table.reshape(len(rows), -1).tolist())
    names = (", ".join(upper), across)
    scale = Scale.fitting(cells, unit=unit)
    return Heatmap(title, cells, rows, axes[across], scale, axes=names, digits=digits)


def _numbers(values: Any) -> Any:
    """Anything with numbers as nested lists."""
    if isinstance(values, str):
        raise InputError(f"Numbers are drawn, not text: {values[:40]!r}.")
    values = getattr(values, "values", values) if hasattr(values, "axis_names") else values
    values = _plain(values)
    if isinstance(values, bool | int | float) or not isinstance(values, Sequence):
        raise InputError(f"A tensor, an array or lists of numbers are drawn, not {values!r:.60}.")
    return [_plain(one) if _is_number(one) else _numbers(one) for one in values]


def _plain(value: Any) -> Any:
    """Lists or a number in place of a tensor or array."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _is_number(value: Any) -> bool:
    return isinstance(_plain(value), int | float)


def _shape(table: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(table, list):
        shape.append(len(table))
        if not table:
            raise InputError(f"There are no numbers to draw: the shape is {shape}.")
        lengths = {len(part) if isinstance(part, list) else None for part in table}
        if len(lengths) > 1:
            raise InputError(f"The rows have different lengths: {sorted(map(str, lengths))}.")
        table = table[0]
    if len(shape) > 3:
        raise InputError(
            f"One to three axes are drawn, and these numbers have {len(shape)}: {shape}. Pass one "
            "entry of the first axis (values[0]), or a mean over an axis."
        )
    return tuple(shape)


def _labels(given: Sequence[Any] | None, entries: int, which: str) -> list[str]:
    if given is None:
        return [str(i) for i in range(entries)]
    if isinstance(given, str) or len(given) != entries:
        n = "a text" if isinstance(given, str) else f"{len(given)} labels"
        raise InputError(f"{which} is a list with a label for each of {entries} entries, not {n}.")
    return list(map(str, given))


def _cells(table: Sequence[Sequence[float]]) -> list[Row]:
    return [[value if isfinite(value) else None for value in row] for row in table]


@dataclass(frozen=True)
class _Request:
    """What `plot` was asked for, its numbers as nested lists."""

    table: Any
    shape: tuple[int, ...]
    given: tuple[Sequence[Any] | None, Sequence[Any] | None, Sequence[Any] | None]
    title: str
    axes: tuple[str, ...]
    unit: str
    digits: Digits

    def labels(self, axis: Literal["z", "y", "x"]) -> list[str]:
        """The labels of an axis; numbers if none were given."""
        back = "xyz".index(axis) + 1
        return _labels(self.given[-back], self.shape[-back], axis)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the axes, empty where none was given."""
        return (("",) * len(self.shape) + self.axes)[-len(self.shape) :]

    def one_axis(self, kind: str) -> list[float]:
        """The numbers, if they have one axis."""
        if len(self.shape) != 1:
            raise InputError(f"kind={kind!r} draws one axis, not {list(self.shape)}.")
        values: list[float] = self.table
        return values


def _heatmap(request: _Request) -> Picture:
    shape = request.shape
    if prod(shape) > MOST_CELLS:
        raise InputError(f"A picture has up to {MOST_CELLS:,} cells, not {list(shape)}.")
    if len(shape) == 3:
        return _panels(request)
    cells = _cells(request.table if len(shape) == 2 else [request.table])
    rows = request.labels("y") if len(shape) == 2 else [""]
    names = ("", *request.names)[-2:]
    scale = Scale.fitting(cells, unit=request.unit)
    columns = request.labels("x")
    return Heatmap(request.title, cells, rows, columns, scale, (names[0], names[1]), request.digits)


def _panels(request: _Request) -> Picture:
    if request.shape[0] > MOST_PANELS:
        raise InputError(
            f"Up to {MOST_PANELS} heatmaps are drawn together, not {request.shape[0]}."
        )
    grids = [_cells(part) for part in request.table]
    scale = Scale.fitting(*grids, unit=request.unit)
    rows, columns = request.labels("y"), request.labels("x")
    first, down, across = request.names
    pictures = [
        Heatmap(
            f"{first} {label_of(head)}".strip(),
            grid,
            rows,
            columns,
            scale,
            (down, across),
            request.digits,
        )
        for head, grid in zip(request.labels("z"), grids, strict=True)
    ]
    return Panels(request.title, pictures)


def _lines(request: _Request) -> Picture:
    if len(request.shape) == 2:
        names = request.labels("y")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"Lines need names that differ; {twice} occur more than once in y.")
        return _series(dict(zip(names, request.table, strict=True)), request)
    return _series({request.title: request.one_axis("lines")}, request)


def _series(series: Mapping[str, list[float]], request: _Request) -> Picture:
    if not any(isfinite(value) for line in series.values() for value in line):
        raise InputError("There are no finite numbers to draw.")
    across = request.axes[-1] if request.axes else ""
    return Lines(request.title, series, request.labels("x"), (across, request.unit))


def _bars(request: _Request) -> Picture:
    values = request.one_axis("bars")
    if len(values) > MOST_BARS:
        raise InputError(
            f"Up to {MOST_BARS} bars are drawn, not {len(values)}: choose the largest."
        )
    return Bars(request.title, _finite(values), request.labels("x"), request.unit)


def _text(request: _Request) -> Picture:
    values = request.one_axis("text")
    if request.given[-1] is None:
        raise InputError("kind='text' colours tokens: pass them as x=model.to_str_tokens(text).")
    return ColouredText(request.title, request.labels("x"), _finite(values), unit=request.unit)


def _histogram(request: _Request) -> Picture:
    flat = request.table
    for _ in request.shape[1:]:
        flat = [value for row in flat for value in row]
    return Histogram(request.title, _finite(flat), request.unit)


def _finite(values: list[float]) -> list[float]:
    wrong = sum(not isfinite(value) for value in values)
    if wrong:
        raise InputError(f"{wrong} of {len(values)} values are not finite numbers.")
    return values


_KINDS: dict[str, Callable[[_Request], Picture]] = {
    "heatmap": _heatmap,
    "lines": _lines,
    "bars": _bars,
    "histogram": _histogram,
    "text": _text,
}
