"""Positions of a text as columns of its batch.

Texts of different lengths are padded to one width, so the token at position 2 of a text may be in
another column of the batch. With padding, a position counts the tokens of its own text: 0 is the
first one (BOS, where there is one), -1 the last. Without padding, positions are columns.
"""

from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.tensors.slices import PosSlice, RowColumns

Count: TypeAlias = Literal["tokens", "columns"]
"""What positions count: the tokens of each text, or the columns of the padded batch."""


def check_count(count: Any) -> None:
    """Refuse what is no way to count.

    Raises:
        InputError: it is neither "tokens" nor "columns".
    """
    if count not in ("tokens", "columns"):
        raise InputError(f"count is 'tokens' or 'columns', not {count!r}.")


def padded(mask: Tensor | None, size: int | None = None) -> Tensor | None:
    """Which columns hold tokens, or None if none is padding.

    Args:
        mask: `[batch, column]`, 1 for tokens, or None.
        size: how many of the last columns are meant; None: all.
    """
    if mask is None or mask.ndim != 2:
        return None
    real = mask.bool() if size is None else mask[:, mask.shape[1] - size :].bool()
    return None if bool(real.all()) else real


def columns_of_tokens(real: Tensor, tokens: Tensor) -> Tensor:
    """The columns of some tokens of each row.

    Args:
        real: which columns hold tokens.
        tokens: numbers of tokens, not negative; of those that a row does not have, the result
            means nothing.

    Shapes: `[rows, column]`, `[rows or 1, n]` -> `[rows, n]`

    Example:
        >>> real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).bool()
        >>> columns_of_tokens(real, torch.tensor([[0, 1]]))
        tensor([[2, 3],
                [0, 1]])
    """
    order = torch.sort(~real, dim=-1, stable=True).indices
    tokens = tokens.expand(len(real), -1).to(order.device)
    return order.gather(1, tokens.clamp(0, real.shape[1] - 1))


def is_one(asked: Any) -> bool:
    """Whether a single position is asked for."""
    return isinstance(asked, Integral | str) or (isinstance(asked, Tensor) and asked.ndim == 0)


def token_positions(
    asked: PosSlice, real: Tensor | None, count: Count = "tokens", what: str = "pos_slice"
) -> "PosSlice | RowColumns":
    """Positions as columns.

    Args:
        asked: which positions.
        real: which columns hold tokens, `[rows, column]`, or None if nothing is padding.
        count: "columns" if the positions are columns already.
        what: the name of the argument, for messages.

    Returns:
        What was asked for, where positions are columns; else the columns of each row.

    Raises:
        InputError: a row has no such token, or rows would have different numbers of positions.

    Example:
        >>> real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
        >>> token_positions([0, -1], real).columns
        tensor([[2, 3],
                [0, 3]])
        >>> token_positions([0, -1], real, "columns")
        [0, -1]
    """
    check_count(count)
    if isinstance(asked, str) and asked != "last":
        raise InputError(f"{what} is {asked!r}; the only word that it can be is 'last'.")
    if real is None or count == "columns" or _is_everything(asked):
        return -1 if isinstance(asked, str) else asked
    counts = real.sum(-1).tolist()
    if isinstance(asked, slice | tuple):
        return RowColumns(_of_slice(asked, real, counts, what))
    given = torch.as_tensor(-1 if isinstance(asked, str) else asked).cpu()
    if given.dtype == torch.bool or given.is_floating_point() or given.ndim > 2:
        raise InputError(
            f"{what} is an index, 'last', a slice, a list of indices or None, not {asked!r}."
        )
    tokens = given if given.ndim == 2 else given.reshape(1, -1)
    if len(tokens) not in (1, len(real)):
        raise InputError(f"{what} has {len(tokens)} lists; there are {len(real)} examples.")
    tokens = tokens.expand(len(real), -1)
    for row, (wanted, size) in enumerate(zip(tokens.tolist(), counts, strict=True)):
        for position in wanted:
            if not -size <= position < size:
                raise InputError(
                    f"{what}={position}: {row_has(row, size)}, and the rest of its row is padding. "
                    "To count columns of the batch instead, pass count='columns'."
                )
    tokens = torch.where(tokens < 0, tokens + torch.tensor(counts)[:, None], tokens)
    return RowColumns(columns_of_tokens(real, tokens), is_one(asked))


def shown_slice(cut: slice) -> str:
    """A slice as it is written in an index.

    Example:
        >>> shown_slice(slice(1, None)), shown_slice(slice(None, 8, 2))
        ('1:', ':8:2')
    """
    parts = [cut.start, cut.stop] + ([] if cut.step is None else [cut.step])
    return ":".join("" if part is None else str(part) for part in parts)


def row_has(row: int, size: int) -> str:
    """How many tokens a row has, for messages."""
    return f"example {row} has {size} token{'' if size == 1 else 's'}"


def _is_everything(asked: Any) -> bool:
    if isinstance(asked, slice | tuple):
        cut = asked if isinstance(asked, slice) else slice(*asked)
        return cut.start is None and cut.stop is None and cut.step in (None, 1)
    return asked is None


def _of_slice(asked: Any, real: Tensor, counts: list[int], what: str) -> Tensor:
    cut = asked if isinstance(asked, slice) else slice(*asked)
    tokens = [list(range(*cut.indices(size))) for size in counts]
    sizes = [len(row) for row in tokens]
    if len(set(sizes)) > 1:
        low, high = sizes.index(min(sizes)), sizes.index(max(sizes))
        raise InputError(
            f"{what}={shown_slice(cut)} is {sizes[low]} positions of example {low}, which has "
            f"{counts[low]} tokens, and {sizes[high]} of example {high}, which has {counts[high]}. "
            "Ask for positions that all of them have, give texts of equal length, or pass "
            "count='columns' for columns of the padded batch."
        )
    return columns_of_tokens(real, torch.tensor(tokens, dtype=torch.long))
