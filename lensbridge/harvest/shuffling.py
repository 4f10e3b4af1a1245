"""Shuffled: batches in random order, whose state can be saved in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.columns import Column

_ROUNDS = 4
_MIX = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Permutation:
    """A random order of `0 .. count - 1` that takes no memory: each place is computed by itself.

    It is a Feistel network over the next power of four, walked on until it lands inside.

    Args:
        count: how many.
        seed: which order.
    """

    count: int
    seed: int

    def __call__(self, places: Tensor) -> Tensor:
        """What stands at some places. Shapes: `[place]`"""
        half = max(1, ((self.count - 1).bit_length() + 1) // 2)
        keys = torch.Generator().manual_seed(self.seed)
        rounds = torch.randint(0, 2**31 - 1, (_ROUNDS,), generator=keys).tolist()
        found = self._once(places.long(), half, rounds)
        while bool((outside := found >= self.count).any()):
            found[outside] = self._once(found[outside], half, rounds)
        return found

    def _once(self, values: Tensor, half: int, rounds: list[int]) -> Tensor:
        mask = (1 << half) - 1
        left, right = values >> half, values & mask
        for key in rounds:
            mixed = (right + key) * (_MIX & 0x7FFFFFFF)
            mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
            left, right = right, left ^ ((mixed ^ (mixed >> 13)) & mask)
        return (left << half) | right


class Shuffled:
    """Batches of entries in random order. Each loop over it is an epoch with an order of its own.

    `state_dict()` can be taken after any batch; after `load_state_dict` the next loop gives the
    rest of that epoch.

    Args:
        columns: the tensors that a batch has.
        batch_size: entries of a batch.
        seed: of the order.
        window: entries in memory at once; None: read one by one.
        drop_last: leave out a last batch that is not full.

    Raises:
        InputError: there are no entries, or a number is too small.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        batch_size: int,
        seed: int,
        window: int | None,
        drop_last: bool,
    ) -> None:
        self._columns = {one.name: one for one in columns}
        self._count = len(columns[0])
        if not self._count:
            raise InputError("There are no entries to shuffle.")
        for name, value in (("batch_size", batch_size), ("window", window)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is too small: it is 1 or more.")
        self._size, self._seed, self._window, self._drop = batch_size, seed, window, drop_last
        self._epoch = 0
        self._batch = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self._count, self._size)
        return whole + bool(rest and not self._drop)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches that are left of this epoch. Shapes: each tensor `[entry, ...]`"""
        epoch, first = self._epoch, self._batch
        give = self._everywhere if self._window is None else self._in_windows
        for batch in give(epoch, first):
            self._batch += 1
            if self._batch == len(self):
                self._epoch, self._batch = epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch and how many of its batches were given, with what they depend on."""
        return {"epoch": self._epoch, "batch": self._batch, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: it is of other entries, or of another batch size, seed or window.
        """
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise InputError(
                    f"The state has {name}={state.get(name)!r}, and this is {value!r}: it would go "
                    "on in another order."
                )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])

    def _settings(self) -> dict[str, Any]:
        return {
            "entries": self._count,
            "batch_size": self._size,
            "seed": self._seed,
            "window": self._window,
            "drop_last": self._drop,
        }

    def _ends(self, epoch: int) -> int:
        """The seed of an epoch."""
        return (self._seed * 1_000_003 + epoch) % 2**62

    def _everywhere(self, epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        order = Permutation(self._count, self._ends(epoch))
        for batch in range(first, len(self)):
            places = torch.arange(batch * self._size, min((batch + 1) * self._size, self._count))
            chosen = order(places)
            yield {name: column[chosen] for name, column in self._columns.items()}

    def _in_windows(self, epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        """Pieces of shards in random order, joined to windows that are mixed."""
        skip, left = first * self._size, dict[str, Tensor]()
        for window in self._windows(epoch):
            size = sum(stop - start for start, stop in window)
            if skip >= size and not left:
                skip -= size
                continue
            mixed = self._mixed(epoch, window)
            joined = {
                name: torch.cat([left[name], one]) if left else one for name, one in mixed.items()
            }
            count = len(next(iter(joined.values())))
            at = min(skip, count)
            skip -= at
            while count - at >= self._size:
                yield {name: one[at : at + self._size] for name, one in joined.items()}
                at += self._size
            left = {name: one[at:].clone() for name, one in joined.items()} if at < count else {}
        if left and not self._drop:
            yield left

    def _windows(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """Ranges of entries that are mixed with each other."""
        window = self._window or self._count
        column = next(iter(self._columns.values()))
        piece = max(1, window // 8)  # a window has parts of several shards
        pieces = [
            (start, min(start + piece, stop))
            for begin, stop in zip(column.starts[:-1], column.starts[1:], strict=True)
            for start in range(begin, stop, piece)
        ]
        keys = torch.Generator().manual_seed(self._ends(epoch))
        gathered, size = list[tuple[int, int]](), 0
        for index in torch.randperm(len(pieces), generator=keys).tolist():
            start, stop = pieces[index]
            if gathered and size + stop - start > window:
                yield gathered
                gathered, size = [], 0
            gathered.append((start, stop))
            size += stop - start
        if gathered:
            yield gathered

    def _mixed(self, epoch: int, window: list[tuple[int, int]]) -> dict[str, Tensor]:
        size = sum(stop - start for start, stop in window)
        keys = torch.Generator().manual_seed((self._ends(epoch) * 31 + window[0][0]) % 2**62)
        order = torch.randperm(size, generator=keys)
        return {
            name: torch.cat([column[start:stop] for start, stop in window])[order]
            for name, column in self._columns.items()
        }
