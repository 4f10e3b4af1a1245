"""Positions of a text as columns of its batch.

Texts of different lengths are padded to one width, so the token at position 2 of a text may be in
another column of the batch. With padding, a position counts the tokens of its own text: 0 is the
first one (BOS, where there is one), -1 the last. Without padding, positions are columns.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.tensors.position_forms import TokenMask, as_positions, by_row
from lensbridge.tensors.slices import RowColumns

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


def token_positions(
    asked: Any,
    real: Tensor | None,
    count: Count = "tokens",
    what: str = "pos_slice",
    shape: tuple[int, int] | None = None,
) -> "int | slice | list[int] | RowColumns | None":
    """Positions as columns.

    Args:
        asked: which positions, in any form that `as_positions` reads.
        real: which columns hold tokens, `[rows, column]`, or None if nothing is padding.
        count: "columns" if the positions are columns already.
        what: the name of the argument, for messages.
        shape: rows and columns of the batch, if they are known and nothing is padding.

    Returns:
        What was asked for, where positions are the same columns in all rows; else the columns of
        each row.

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
    if isinstance(asked, list) and not asked:
        return []
    found = as_positions(asked, what, tuples="slice")
    shape = shape if real is None else (real.shape[0], real.shape[1])
    real = real if count == "tokens" else None
    if isinstance(found, TokenMask):
        return _of_mask(found, real, shape, what)
    if by_row(found):
        return _of_lists(found, real, shape, what)
    if real is None or _is_everything(found):
        found = -1 if found == "last" else found
        return list(found) if isinstance(found, tuple) else found
    if isinstance(found, slice):
        return RowColumns(_of_slice(found, real, real.sum(-1).tolist(), what))
    one = isinstance(found, int | str)
    row = (-1 if found == "last" else found,) if one else found
    return RowColumns(_of_tokens([row] * len(real), real, what), one)


def _of_mask(
    mask: TokenMask, real: Tensor | None, shape: tuple[int, int] | None, what: str
) -> "list[int] | RowColumns":
    if shape is not None:
        mask.check(shape[0], shape[1], real, what)
    _check_even(mask.rows, what)
    if len(mask.rows) == 1 and real is None:
        return list(mask.rows[0])
    rows = mask.rows * (1 if shape is None or len(mask.rows) > 1 else shape[0])
    return RowColumns(torch.tensor(rows, dtype=torch.long))


def _of_lists(
    rows: Sequence[Sequence[int]],
    real: Tensor | None,
    shape: tuple[int, int] | None,
    what: str,
) -> "list[int] | RowColumns":
    if len(rows) == 1 and real is None:
        return list(rows[0])
    if shape is not None and len(rows) not in (1, shape[0]):
        raise InputError(f"{what} has {len(rows)} lists; there are {shape[0]} examples.")
    _check_even(rows, what)
    if real is not None:
        return RowColumns(_of_tokens([*rows] * (len(real) // len(rows)), real, what))
    columns = torch.tensor([list(row) for row in rows], dtype=torch.long)
    return RowColumns(columns if shape is None else _within(columns, shape[1], what))


def _within(columns: Tensor, size: int, what: str) -> Tensor:
    wrong = columns[(columns >= size) | (columns < -size)].tolist()
    if wrong:
        raise InputError(f"{what}={wrong[0]}: there are {size} positions, 0 to {size - 1}.")
    return columns % size


def _check_even(rows: Sequence[Sequence[int]], what: str) -> None:
    """Refuse rows with different numbers of positions: what is kept of them has one shape."""
    sizes = [len(row) for row in rows]
    if len(set(sizes)) > 1:
        low, high = sizes.index(min(sizes)), sizes.index(max(sizes))
        raise InputError(
            f"{what} is {sizes[low]} positions of example {low} and {sizes[high]} of example "
            f"{high}. Ask for as many of each: what is kept of them has one shape."
        )


def _of_tokens(rows: Sequence[Sequence[int]], real: Tensor, what: str) -> Tensor:
    """The columns of tokens of each row. Shapes: `[rows, n]`"""
    counts = real.sum(-1).tolist()
    for row, (wanted, size) in enumerate(zip(rows, counts, strict=True)):
        for position in wanted:
            if not -size <= position < size:
                raise InputError(
                    f"{what}={position}: {row_has(row, size)}, and the rest of its row is padding. "
                    "To count columns of the batch instead, pass count='columns'."
                )
    tokens = torch.tensor([list(row) for row in rows], dtype=torch.long)
    tokens = torch.where(tokens < 0, tokens + torch.tensor(counts)[:, None], tokens)
    return columns_of_tokens(real, tokens)


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


def _is_everything(found: Any) -> bool:
    if isinstance(found, slice):
        return found.start is None and found.stop is None and found.step in (None, 1)
    return found is None


def _of_slice(cut: slice, real: Tensor, counts: list[int], what: str) -> Tensor:
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
