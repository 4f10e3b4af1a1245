"""Column: one tensor of all shards, which are read from the disk as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError

_BLOCK = 1_024
"""Entries that are in memory at once while a column is iterated over."""


@dataclass(frozen=True)
class Column:
    """All entries of one tensor, in order. It is indexed like a tensor along its first axis.

    Args:
        name: the name of the tensor.
        starts: the first entry of each shard, and at the end the number of all.
        reader: gives a slice of a tensor of a shard, from a mapped file.

    Example: `column[1_000:1_064]`, `column[[3, 1, 2]]`, `column[-1]`, `column[mask]`.
    """

    name: str
    starts: Sequence[int]
    reader: Callable[[int, str, slice], Tensor]

    def __len__(self) -> int:
        """How many entries."""
        return self.starts[-1]

    @property
    def shape(self) -> torch.Size:
        """Shapes: `[entry, ...]`"""
        return torch.Size((len(self), *self._one().shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self._one().dtype

    def __repr__(self) -> str:
        return f"Column({self.name}, {list(self.shape)}, {self.dtype})"

    def _read(self, shard: int, part: slice) -> Tensor:
        return self.reader(shard, self.name, part)

    def _one(self) -> Tensor:
        if not len(self.starts) > 1:
            raise InputError(f"There are no shards, so nothing is known of {self.name}.")
        return self._read(0, slice(0, 0))

    def __iter__(self) -> Iterator[Tensor]:
        """The entries, one after another: what `column[0]`, `column[1]`, ... are.

        Shapes: each `[...]`, without an axis of entries
        """
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK].clone()

    def shards(self) -> Iterator[Tensor]:
        """The tensors of the shards, one after another. Shapes: each `[entry, ...]`"""
        return (self._read(shard, slice(None)) for shard in range(len(self.starts) - 1))

    def __getitem__(self, index: Any) -> Tensor:
        """Some entries. Shapes: as a tensor `[entry, ...]` would give

        Raises:
            InputError: an index beyond the end.
        """
        if isinstance(index, tuple):
            return self._of_axes(index)
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return self._range(chosen) if chosen.step == 1 else self._scattered(list(chosen))
        if isinstance(index, int) and not isinstance(index, bool):
            return self._scattered([index])[0]
        given = _as_indices(index)
        if given.dtype == torch.bool:
            if given.shape != (len(self),):
                raise InputError(f"A mask has {len(self)} entries here, not {list(given.shape)}.")
            given = given.nonzero().flatten()
        found = self._scattered(given.flatten().tolist())
        return found.view(*given.shape, *found.shape[1:])

    def _of_axes(self, index: tuple[Any, ...]) -> Tensor:
        """An index for the entries, and others for the axes after them."""
        if not index or index[0] is Ellipsis:
            return self[:][index]
        found = self[index[0]]
        axes = found.ndim - len(self.shape) + 1  # of the entries: an index of one has none
        return found[(slice(None),) * axes + index[1:]]

    def _range(self, chosen: range) -> Tensor:
        parts = []
        for shard, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            first, last = max(chosen.start, start), min(chosen.stop, stop)
            if first < last:
                parts.append(self._read(shard, slice(first - start, last - start)))
        if not parts:
            return self._one()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _scattered(self, indices: list[int]) -> Tensor:
        """Entries at any places; each is read by itself, shard after shard."""
        count = len(self)
        wrong = next((one for one in indices if not -count <= one < count), None)
        if wrong is not None:
            raise InputError(f"There is no entry {wrong}: there are {count}.")
        given = torch.tensor(indices, dtype=torch.long) % max(count, 1)
        found = torch.empty((len(indices), *self.shape[1:]), dtype=self.dtype)
        shards = torch.bucketize(given, torch.tensor(self.starts[1:]), right=True)
        for shard in shards.unique().tolist():
            where = (shards == shard).nonzero().flatten()
            whole = self._read(shard, slice(None))  # a view of the mapped file: nothing is read yet
            found[where] = whole[given[where] - self.starts[shard]]
        return found


def _as_indices(index: Any) -> Tensor:
    """Whole numbers, or a mask.

    Raises:
        InputError: it is neither.
    """
    try:
        given = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"An index is a number, a slice, a list or a mask, not {index!r}."
        ) from error
    if given.is_floating_point() and given.numel():
        raise InputError(f"An index has whole numbers or is a mask, not {given.dtype}.")
    return given


def mean(column: Column, where: Tensor | None) -> Tensor:
    """The mean of a column, or of its entries where a mask is true, in float64.

    Shapes: where `[entry]`, bool; result `[...]`

    Raises:
        InputError: the mask has another length, or is true nowhere.
    """
    if where is not None and where.shape != (len(column),):
        raise InputError(f"where has {len(column)} entries here, not {list(where.shape)}.")
    total, count = torch.zeros(column.shape[1:], dtype=torch.float64), 0
    for start, values in zip(column.starts, column.shards(), strict=False):
        some = values if where is None else values[where[start : start + len(values)]]
        total, count = total + some.double().sum(0), count + len(some)
    if not count:
        raise InputError("There are no such entries, so there is no mean.")
    return total / count
