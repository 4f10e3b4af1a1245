"""Plan: the bytes that a run with a cache keeps, for each point, each device and in total."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lensbridge.points.names import template
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.numbers import bytes_as_text
from lensbridge.viz.picture import framed

HEADS = ("point", "layers", "shape", "dtype", "device", "bytes, all layers")
_CELL = "padding:1px 12px 1px 0;text-align:"
_NUMBERS = ("layers", "shape", HEADS[-1])


@dataclass(frozen=True)
class PlannedValue:
    """One tensor that a run will keep.

    Args:
        name: the point, or the point with `_grad` for its gradient.
        shape: of the tensor.
        dtype: of the tensor.
        device: where it is kept.
        bytes: of its elements.
        storage: a number that values with the same memory have in common.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    bytes: int
    storage: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "PlannedValue":
        """What a tensor is, which need not have values."""
        shape, place = tuple(tensor.shape), str(tensor.device)
        return cls(name, shape, tensor.dtype, place, tensor.nbytes, storage_of(tensor))


@dataclass(frozen=True)
class Kind:
    """The points that one row of the table stands for, all layers together."""

    name: str
    points: int
    shape: tuple[int, ...]
    dtype: str
    device: str
    bytes: int

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        shape = " x ".join(map(str, self.shape))
        size = bytes_as_text(self.bytes)
        return (self.name, str(self.points), shape, self.dtype, self.device, size)


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run will take. In a notebook it shows itself as a table.

    Args:
        values: what the cache will hold, by name.
        by_device: bytes that the cache will hold on each device. Memory that points share counts
            once.
        peak: the most bytes that the run will hold at one time on each device: the cache, the
            result, what a backward pass needs, and what is computed on the way. Weights are not
            in it.
        result: bytes of what the run returns beside the cache: logits, a loss.
        weights: bytes of the weights and buffers that lie on each device; "offloaded" are those
            that accelerate brings to a device layer by layer.
        runs_on: the devices that compute.
        batch: how many examples the input has, where it has rows.
        assumes: what the numbers depend on and only the run can tell.
    """

    values: Mapping[str, PlannedValue]
    by_device: Mapping[str, int]
    peak: Mapping[str, int]
    result: int
    weights: Mapping[str, int]
    runs_on: frozenset[str]
    batch: int | None = None
    assumes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes that the cache will hold. Memory that points share counts once."""
        return sum(self.by_device.values())

    @property
    def held(self) -> int:
        """Bytes that the cache will hold on that computing device which holds most of it."""
        return max((n for place, n in self.by_device.items() if place in self.runs_on), default=0)

    @cached_property
    def by_row(self) -> dict[str, list[str]]:
        """The names of each row of the table of points; gradients belong to their point's row."""
        rows: dict[str, list[str]] = {}
        for name in self.values:
            rows.setdefault(template(name.removesuffix("_grad")), []).append(name)
        return rows

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Bytes of each value by name, also of what it shares with others."""
        return {name: value.bytes for name, value in self.values.items()}

    @cached_property
    def kinds(self) -> list[Kind]:
        """One entry for each row of the table of points, shape, dtype and device; largest first."""
        groups: dict[tuple[str, tuple[int, ...], str, str], list[int]] = {}
        for value in self.values.values():
            dtype = str(value.dtype).removeprefix("torch.")
            key = (_row_of(value.name), value.shape, dtype, value.device)
            groups.setdefault(key, []).append(value.bytes)
        kinds = [
            Kind(name, len(sizes), shape, dtype, device, sum(sizes))
            for (name, shape, dtype, device), sizes in groups.items()
        ]
        return sorted(kinds, key=lambda one: -one.bytes)

    @property
    def summary(self) -> list[str]:
        """The totals, one for each line."""
        lines = [
            f"weights  {_by_device(self.weights)}",
            f"cache    {_by_device(self.by_device)} (memory that points share counts once)",
        ]
        if self.result:
            lines.append(f"result   {bytes_as_text(self.result)}")
        lines.append(f"peak     {_by_device(self.peak)} beside the weights, while it runs")
        return [*lines, *(f"assumed  {one}" for one in self.assumes)]

    def __str__(self) -> str:
        return "\n".join([*self.summary, *_aligned([HEADS, *(k.cells() for k in self.kinds)])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = element("tr", *(_cell("th", name, name) for name in HEADS))
        rows = [
            element("tr", *(_cell("td", h, text) for h, text in zip(HEADS, k.cells(), strict=True)))
            for k in self.kinds
        ]
        lines = element("pre", plain("\n".join(self.summary)), style="margin:0 0 6px")
        return framed(lines, element("table", head, *rows))


def storage_of(tensor: Tensor) -> int:
    """The memory of a tensor, as a number that its views share."""
    return tensor.untyped_storage()._cdata


def stored_bytes(tensors: Iterable[Tensor]) -> dict[str, int]:
    """The bytes of memory that tensors take on each device; what they share counts once."""
    found: dict[str, int] = {}
    storages = {storage_of(one): (str(one.device), one) for one in tensors}
    for place, one in storages.values():
        found[place] = found.get(place, 0) + one.untyped_storage().nbytes()
    return found


def _row_of(name: str) -> str:
    """The row of the table of points that a name belongs to; gradients have rows of their own."""
    return f"{template(name.removesuffix('_grad'))}_grad" if _is_grad(name) else template(name)


def _is_grad(name: str) -> bool:
    return name.endswith("_grad")


def _by_device(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{bytes_as_text(n)} on {place}" for place, n in sizes.items()) or "0 B"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.rjust(width) if head in _NUMBERS else text.ljust(width)
            for head, text, width in zip(HEADS, row, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _cell(tag: str, head: str, text: str) -> Html:
    side = "right" if head in _NUMBERS else "left"
    return element(tag, plain(text), style=f"{_CELL}{side}")
