"""How every weight of a model is held: one row each, as a table that can be filtered."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from torch import Tensor

from lensbridge.errors import WeightError, suggest
from lensbridge.native.holding import Held, shapes_only
from lensbridge.native.linear import State
from lensbridge.points.names import template
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.numbers import bytes_as_text
from lensbridge.viz.picture import framed
from lensbridge.weights.entry import Source, Weight

_HEADS = ("weight", "layers", "shape", "dtype", "device", "held", "module", "bytes", "read")
_NUMBERS = ("layers", "shape", "bytes")
_CELL = "padding:1px 12px 1px 0;text-align:"


@dataclass(frozen=True)
class DescribedWeight:
    """How one weight is held.

    Args:
        name: its canonical name, such as `blocks.5.attn.W_Q`.
        shape: of what a read gives.
        dtype: of what is stored.
        device: where it is stored; "offloaded" where accelerate keeps it.
        holding: how it is held: "plain", "sharded", "quantized", "adapted", "offloaded", "opaque",
            or "composed", a product of several weights.
        module: the class of the native module that holds it.
        readable: how a read gets the value.
        why_not_writable: why a write raises and what to do instead; "" where it can be written to.
        bytes: that it takes as it is stored; its share where one tensor holds several weights.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    holding: State
    module: str
    readable: str
    why_not_writable: str
    bytes: int

    @property
    def writable(self) -> bool:
        """Whether a write to it changes the model."""
        return not self.why_not_writable

    def cells(self) -> tuple[str, ...]:
        """What a table says of it, without its name and its bytes."""
        shape = " x ".join(map(str, self.shape))
        access = self.readable if self.writable else f"{self.readable}, not written"
        return (shape, self.dtype, self.device, self.holding, self.module, access)


class DescribedWeights(Sequence[DescribedWeight]):
    """How the weights of a model are held. In a notebook it shows itself as a table.

    It is a sequence of `DescribedWeight`, of which `pandas.DataFrame` makes a frame. The table has
    one line for weights that differ only in their layer.
    """

    def __init__(self, rows: Sequence[DescribedWeight]) -> None:
        self.rows = tuple(rows)

    def __getitem__(self, index: Any) -> Any:
        """A row by its number or by its name; the rows of a slice.

        Raises:
            WeightError: there is no weight of this name.
        """
        if isinstance(index, slice):
            return DescribedWeights(self.rows[index])
        if not isinstance(index, str):
            return self.rows[index]
        found = next((row for row in self.rows if row.name == index), None)
        if found is None:
            names = [row.name for row in self.rows]
            raise WeightError(f"There is no weight {index!r} here.{suggest(index, names)}")
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def where(
        self,
        name: str | None = None,
        *,
        holding: State | None = None,
        writable: bool | None = None,
    ) -> "DescribedWeights":
        """The rows that are like this.

        Args:
            name: a name, or a pattern with `*`: "blocks.0.*", "*W_Q".
            holding: how they are held.
            writable: whether they can be written to.
        """
        return DescribedWeights(
            [
                row
                for row in self.rows
                if (name is None or fnmatchcase(row.name, name))
                and holding in (None, row.holding)
                and writable in (None, row.writable)
            ]
        )

    @property
    def counts(self) -> dict[State, int]:
        """How many weights are held in each way."""
        found: dict[State, int] = {}
        for row in self.rows:
            found[row.holding] = found.get(row.holding, 0) + 1
        return found

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why weights cannot be written to, each reason with the names."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if not row.writable:
                found.setdefault(row.why_not_writable, []).append(row.name)
        return found

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        table = [_HEADS, *self._lines()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                text.rjust(width) if head in _NUMBERS else text.ljust(width)
                for head, text, width in zip(_HEADS, row, widths, strict=True)
            ).rstrip()
            for row in table
        ]
        return "\n".join([*lines, *([""] if self.reasons else []), *self._notes()])

    def _repr_html_(self) -> str:
        head = element("tr", *(_cell("th", name, name) for name in _HEADS))
        rows = [
            element("tr", *(_cell("td", h, text) for h, text in zip(_HEADS, row, strict=True)))
            for row in self._lines()
        ]
        notes = element("pre", plain("\n".join(self._notes())), style="margin:6px 0 0")
        return framed(element("table", head, *rows), notes)

    def _lines(self) -> Iterator[tuple[str, ...]]:
        groups: dict[tuple[str, ...], list[int]] = {}
        for row in self.rows:
            groups.setdefault((template(row.name), *row.cells()), []).append(row.bytes)
        for (name, *cells, access), sizes in groups.items():
            yield (name, str(len(sizes)), *cells, bytes_as_text(sum(sizes)), access)

    def _notes(self) -> list[str]:
        return [
            f"Not written: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}. {why}"
            for why, names in self.reasons.items()
        ]


def described(weights: dict[str, Weight], wanted: Callable[[str], bool]) -> DescribedWeights:
    """The description of the weights whose names are wanted."""
    shapes = {name: _shape(one) for name, one in weights.items()}
    sharing: dict[tuple[int, str], int] = {}
    for name, one in weights.items():
        sharing[_place(one.source)] = sharing.get(_place(one.source), 0) + prod(shapes[name])
    return DescribedWeights(
        [
            _row(name, one.source, shapes[name], sharing[_place(one.source)])
            for name, one in weights.items()
            if wanted(name)
        ]
    )


def _shape(weight: Weight) -> tuple[int, ...]:
    """The shape of a read, of which nothing is fetched or gathered where that is possible."""
    with shapes_only(), suppress(RuntimeError):  # where tensors with values come in
        return tuple(weight.read().shape)
    return tuple(weight.read().shape)


def _place(source: Source) -> tuple[int, str]:
    return id(source.module), source.parameter


def _row(name: str, source: Source, shape: tuple[int, ...], sharing: int) -> DescribedWeight:
    held = source.held
    stored = _stored(source, held)
    first = next(iter(stored), None)
    missing = first is None and held.holding not in ("adapted", "opaque")
    return DescribedWeight(
        name=name,
        shape=shape,
        dtype="" if first is None else str(first.dtype).removeprefix("torch."),
        device="" if first is None else "offloaded" if first.is_meta else str(first.device),
        holding=source.state,
        module=type(source.module).__name__,
        readable="as a constant" if missing else held.readable,
        why_not_writable=_MISSING if missing else held.why,
        bytes=sum(one.nbytes for one in stored) * prod(shape) // max(sharing, 1),
    )


_MISSING = "The model has none, so it reads as a constant: zeros for a bias, ones for a gain."


def _stored(source: Source, held: Held) -> list[Tensor]:
    """The tensors that hold a weight: its parameter, or all that the module makes it of."""
    module, name = source.module, source.parameter
    if held.holding not in ("quantized", "adapted", "opaque"):
        own = {**module._buffers, **module._parameters}.get(name)
        return [] if own is None else [own]
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    return [one for path, one in tensors.items() if path.endswith("bias") == name.endswith("bias")]


def _cell(tag: str, head: str, text: str) -> Html:
    side = "right" if head in _NUMBERS else "left"
    return element(tag, plain(text), style=f"{_CELL}{side}")
