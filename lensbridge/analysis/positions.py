"""Which positions of each row an analysis reads; padding is never counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError

PositionsAsked: TypeAlias = int | slice | tuple[int | None, ...] | Sequence[int] | Tensor | None
"""Columns of a batch: one, a slice, its `(start, stop, step)`, or a list; None is all."""


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

    For a cache that was cut by `pos_slice`, and for the decoder of an encoder-decoder, padding is
    not known, and every position counts as a token.

    Shapes: `[batch, length]`
    """
    everywhere = torch.ones(batch, length, dtype=torch.bool)
    mask, tokens, model = cache.attention_mask, cache.tokens, cache.model
    apart = model is not None and model.native.is_encoder_decoder
    if mask is None or mask.ndim != 2 or apart or tokens is None or tokens.shape[1] != length:
        return everywhere
    return mask[:, -length:].bool().cpu()


def positions_of(asked: PositionsAsked, real: Tensor) -> Positions:
    """The positions that were asked for.

    Args:
        asked: an index, a list of indices, one list for each example (`[batch, pos]`), a slice or
            its `(start, stop, step)`, or None for all. An index counts the tokens of its own row:
            -1 is the last token before any padding on the right, 0 the first after any padding on
            the left. Slices count columns, padding included.
        real: where tokens are, `[batch, pos]`.

    Raises:
        InputError: a row has no such position.
    """
    batch, length = real.shape
    if asked is None or isinstance(asked, slice | tuple):
        part = (
            slice(None) if asked is None else asked if isinstance(asked, slice) else slice(*asked)
        )
        columns = torch.arange(length)[part].expand(batch, -1)
        return Positions(columns, real.gather(1, columns), single=False)
    wanted = _indices(asked, batch)
    columns = torch.stack([_columns(row, one) for row, one in zip(real, wanted, strict=True)])
    return Positions(columns, torch.ones_like(columns, dtype=torch.bool), _is_one(asked))


def _is_one(asked: Any) -> bool:
    return isinstance(asked, int) or (isinstance(asked, Tensor) and asked.ndim == 0)


def _indices(asked: Any, batch: int) -> Tensor:
    found = torch.as_tensor(asked).cpu()
    if found.is_floating_point() or found.ndim > 2 or (found.ndim == 2 and len(found) != batch):
        raise InputError(
            f"Positions are an index, a list of indices, one list for each of the {batch} "
            f"examples, a slice or None, not {asked!r}."
        )
    return found if found.ndim == 2 else found.reshape(1, -1).expand(batch, -1)


def _columns(real: Tensor, wanted: Tensor) -> Tensor:
    there = real.nonzero().flatten()
    count = len(there)
    if bool(((wanted >= count) | (wanted < -count)).any()):
        raise InputError(
            f"Positions {wanted.tolist()} are out of range for a row with {count} tokens."
        )
    return there[wanted]
