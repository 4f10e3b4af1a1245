"""Which positions of each row an analysis reads; padding is never counted."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.tensors.positions import Count, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns

PositionsAsked: TypeAlias = PosSlice
"""Positions of each text: one, "last", a slice, its `(start, stop, step)`, or a list; lists of
lists, or a tensor `[batch, pos]`, for those of each example; a mask of bools; None is all columns.
"""


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
    chosen = token_positions(asked, padding, count, "positions", (batch, length))
    if isinstance(chosen, RowColumns):
        columns = chosen.columns.expand(batch, -1)
        tokens = torch.ones_like(columns, dtype=torch.bool)
        tokens = tokens if count == "tokens" else real.gather(1, columns)
        return Positions(columns, tokens, chosen.single)
    if chosen is None or isinstance(chosen, slice):
        columns = torch.arange(length)[chosen or slice(None)].expand(batch, -1)
        return Positions(columns, real.gather(1, columns), single=False)
    wanted = torch.tensor(chosen, dtype=torch.long).reshape(1, -1)
    columns = _columns(length, wanted).expand(batch, -1)
    return Positions(columns, real.gather(1, columns), isinstance(chosen, int))


def _columns(length: int, wanted: Tensor) -> Tensor:
    if bool(((wanted >= length) | (wanted < -length)).any()):
        raise InputError(
            f"Positions {wanted[0].tolist()} are out of range for a row with {length} tokens."
        )
    return torch.arange(length)[wanted]
