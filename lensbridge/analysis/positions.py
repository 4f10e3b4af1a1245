"""Which positions of each row an analysis reads; padding is never counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.tensors.positions import Count, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns

PositionsAsked: TypeAlias = PosSlice | Sequence[Sequence[int]]
"""Positions of each text: one, "last", a slice, its `(start, stop, step)`, or a list; lists of
lists, or a tensor `[batch, pos]`, for those of each example; None is all columns."""


@dataclass(frozen=True)
class Positions:
    """Columns of a batch.

    Args:
        columns: the columns of each row.
        real: whether each is a token rather than padding.
        single: whether one position was asked for, so that results have no position axis.

    Shapes: columns and real `[batch, pos]`
    """

    columns: Tensor
    real: Tensor
    single: bool

    def of(self, values: Tensor) -> Tensor:
        """The values at these positions.

        Shapes: `[batch, pos, ...]` -> `[batch, asked, ...]`
        """
        columns = self.columns.to(values.device)
        rows = torch.arange(len(columns), device=values.device).unsqueeze(1)
        return values[rows, columns]

    def squeezed(self, values: Tensor, axis: int) -> Tensor:
        """Values without their position axis if a single position was asked for."""
        return values.squeeze(axis) if self.single else values


def real_tokens(cache: ActivationCache, batch: int, length: int) -> Tensor:
    """Which positions of a cache are tokens rather than padding.

    For a cache that was cut by `pos_slice`, padding is not known, and every position counts as a
    token.

    Shapes: `[batch, length]`
    """
    real = cache.real_tokens(length)
    return torch.ones(batch, length, dtype=torch.bool) if real is None else real.cpu()


def positions_of(asked: PositionsAsked, real: Tensor, count: Count = "tokens") -> Positions:
    """The positions that were asked for.

    Args:
        asked: an index, a list of indices, one list for each example (`[batch, pos]`), a slice or
            its `(start, stop, step)`, or None for all. They count the tokens of each row: -1 is the
            last token before any padding on the right, 0 the first after any padding on the left.
        real: where tokens are, `[batch, pos]`.
        count: "columns": slices and indices count columns, padding included.

    Raises:
        InputError: a row has no such position, or slices are longer in some rows than in others.
    """
    batch, length = real.shape
    padding = None if asked is None or bool(real.all()) else real
    chosen = token_positions(_plain(asked), padding, count, "positions")
    if isinstance(chosen, RowColumns):
        columns = chosen.columns
        return Positions(columns, torch.ones_like(columns, dtype=torch.bool), chosen.single)
    if chosen is None or isinstance(chosen, slice | tuple):
        part = slice(*chosen) if isinstance(chosen, tuple) else chosen or slice(None)
        columns = torch.arange(length)[part].expand(batch, -1)
        return Positions(columns, real.gather(1, columns), single=False)
    wanted = _indices(chosen, batch)
    columns = torch.stack([_columns(length, one) for one in wanted])
    return Positions(columns, real.gather(1, columns), _is_one(chosen))


def _plain(asked: PositionsAsked) -> PosSlice:
    """Positions with lists for each example as a tensor."""
    nested = isinstance(asked, list) and asked and isinstance(asked[0], list | tuple)
    return _numbers(asked) if nested else asked  # type: ignore[return-value]


def _numbers(asked: Any) -> Tensor:
    try:
        return torch.as_tensor(asked)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Positions are an index, a list of indices, a slice or None, not {asked!r}."
        ) from error


def _is_one(asked: Any) -> bool:
    return isinstance(asked, int) or (isinstance(asked, Tensor) and asked.ndim == 0)


def _indices(asked: Any, batch: int) -> Tensor:
    found = _numbers(asked).cpu()
    if found.is_floating_point() or found.ndim > 2 or (found.ndim == 2 and len(found) != batch):
        raise InputError(
            f"Positions are an index, a list of indices, one list for each of the {batch} "
            f"examples, a slice or None, not {asked!r}."
        )
    return found if found.ndim == 2 else found.reshape(1, -1).expand(batch, -1)


def _columns(length: int, wanted: Tensor) -> Tensor:
    if bool(((wanted >= length) | (wanted < -length)).any()):
        raise InputError(
            f"Positions {wanted.tolist()} are out of range for a row with {length} tokens."
        )
    return torch.arange(length)[wanted]
