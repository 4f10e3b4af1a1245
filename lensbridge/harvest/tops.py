"""Tops: the entries of a harvest at which a value is largest, with the text around them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.columns import Column
from lensbridge.maxima.tally import Tally
from lensbridge.viz import Card, CardText, Drawn
from lensbridge.viz.numbers import short

_PIECE = 65_536
"""Entries that are read at once."""

Feature = Callable[[Tensor], Tensor]
"""Maps activations `[entry, ...]` to values `[entry]`."""


def feature_of(given: Any, shape: torch.Size) -> tuple[str, Feature]:
    """What a value is computed from activations by, and its name.

    Args:
        given: an index of the last axis (several for several axes); a direction; `(sae, number)`
            for a feature of a sparse autoencoder; or a function.
        shape: of one entry.

    Raises:
        InputError: it is none of these, or does not fit.
    """
    if isinstance(given, int) or (isinstance(given, tuple) and _all_ints(given)):
        index = (given,) if isinstance(given, int) else given
        _require_index(index, shape)
        place = (..., *index)
        return ", ".join(map(str, index)), lambda values: values[place]
    if isinstance(given, Tensor):
        if given.shape != shape:
            raise InputError(
                f"A direction has the shape of an entry, {list(shape)}, not {list(given.shape)}."
            )
        flat = given.flatten().float()
        return "a direction", lambda values: values.flatten(1).float() @ flat
    if isinstance(given, tuple) and len(given) == 2 and hasattr(given[0], "encode"):
        sae, number = given
        _require_feature(sae, number)
        return f"feature {number}", lambda values: sae.encode(values.flatten(1).float())[:, number]
    if callable(given):
        return "a function", given
    raise InputError(
        f"A feature is an index, a direction, (sae, number) or a function, not {given!r:.60}."
    )


def _all_ints(given: tuple[Any, ...]) -> bool:
    return bool(given) and all(type(one) is int for one in given)


def _require_feature(sae: Any, number: Any) -> None:
    weights = getattr(sae, "W_dec", None)  # of SAELens and of lensbridge.saes
    count = len(weights) if isinstance(weights, Tensor) else None
    if type(number) is not int or number < 0 or (count is not None and number >= count):
        known = "" if count is None else f": the autoencoder has 0 to {count - 1}"
        raise InputError(f"There is no feature {number!r}{known}.")


def _require_index(index: tuple[int, ...], shape: torch.Size) -> None:
    if len(index) != len(shape):
        raise InputError(f"An entry has the shape {list(shape)}: pass {len(shape)} numbers.")
    for one, size in zip(index, shape, strict=True):
        if not -size <= one < size:
            raise InputError(f"There is no {one} on an axis of {size}.")


@dataclass(frozen=True)
class Top:
    """An entry at which the value is large.

    Args:
        value: it.
        entry: its number in the activations.
        document: the number of its document.
        at: which of `tokens` it is.
        tokens: the tokens of its row around it, as text where there is a tokenizer.
        values: their values.
    """

    value: float
    entry: int
    document: int
    at: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def token(self) -> str:
        """The token itself."""
        return self.tokens[self.at]


@dataclass(frozen=True, repr=False)
class Tops(Drawn):
    """The entries at which a value is largest, the largest first, and how its values spread.

    Args:
        name: what the value is.
        found: the entries.
        tally: how often values occur.
    """

    name: str
    found: tuple[Top, ...]
    tally: Tally

    def __len__(self) -> int:
        """How many entries."""
        return len(self.found)

    def __iter__(self) -> Iterator[Top]:
        """The entries, the largest first."""
        return iter(self.found)

    def __getitem__(self, index: int) -> Top:
        """One of them."""
        return self.found[index]

    def __str__(self) -> str:
        lines = [f"{one.value:9.4g}  {one.token!r:16} in {''.join(one.tokens)!r}" for one in self]
        return "\n".join([self.name, *lines])

    __repr__ = __str__

    def plot(self, *, title: str = "") -> Card:
        """The texts around the largest values, and a histogram.

        Args:
            title: written above it; if empty, what the value is.
        """
        counts, edges = self.tally.histogram()
        spread = f"{short(self.tally.low)} to {short(self.tally.high)}"
        return Card(
            title or self.name,
            {
                "above 0 at": f"{self.tally.density:.3%} of {self.tally.count:,} tokens",
                "values": f"{spread}, mean {short(self.tally.mean)}",
            },
            [CardText(one.tokens, one.values, one.at, f"document {one.document}") for one in self],
            counts,
            edges,
        )


@dataclass(frozen=True)
class Beside:
    """The tensors that say where an entry is from.

    Args:
        tokens: ids.
        rows: numbers of rows.
        documents: numbers of documents.
        text: an id as text.
    """

    tokens: Column
    rows: Column
    documents: Column
    text: Callable[[int], str]


@torch.no_grad()
def tops(column: Column, feature: Any, k: int, context: int, beside: Beside) -> Tops:
    """The `k` largest values; see `Activations.top`."""
    if k < 1 or context < 0:
        raise InputError(f"k is 1 or more and context 0 or more, not {k} and {context}.")
    told, value_of = feature_of(feature, column.shape[1:])
    best, where, tally = torch.empty(0), torch.empty(0, dtype=torch.long), Tally()
    for start in range(0, len(column), _PIECE):
        read = column[start : start + _PIECE]
        values = value_of(read).float()
        if values.shape != (len(read),):
            raise InputError(
                f"The function gives {list(values.shape)} for {len(read)} entries, and not one "
                "number for each. For a feature of an autoencoder pass (sae, number)."
            )
        tally.add(values)
        best = torch.cat([best, values])
        where = torch.cat([where, torch.arange(start, start + len(values))])
        best, order = best.topk(min(k, len(best)))
        where = where[order]
    found = tuple(
        _around(column, value_of, int(entry), float(value), context, beside)
        for value, entry in zip(best, where, strict=True)
    )
    return Tops(f"{column.name}, {told}", found, tally)


def _around(
    column: Column, value_of: Feature, entry: int, value: float, context: int, beside: Beside
) -> Top:
    shard = bisect_right(column.starts, entry)  # rows of several folders may have one number
    first = max(column.starts[shard - 1], entry - context)
    last = min(column.starts[shard], entry + context + 1)
    same = beside.rows[first:last] == beside.rows[entry]
    first += int(same.int().argmax())  # the entries of one row are neighbours
    last = first + int(same.sum())
    values = value_of(column[first:last]).float().tolist()
    tokens = tuple(beside.text(one) for one in beside.tokens[first:last].tolist())
    return Top(value, entry, int(beside.documents[entry]), entry - first, tokens, tuple(values))
