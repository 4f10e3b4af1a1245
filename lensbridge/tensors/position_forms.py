"""The forms in which positions are asked for, and the one parser of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import torch
from numpy import ndarray
from torch import Tensor

from lensbridge.errors import InputError


@dataclass(frozen=True)
class TokenMask:
    """The columns of a batch that a mask of bools marks.

    A mask has an entry for each column of the batch, as its ids and its attention mask have.

    Args:
        rows: the columns that are marked in each row; one row for all of the batch.
        width: how many columns the mask has.

    Example:
        >>> TokenMask.of(torch.tensor([[False, True, True], [True, False, False]]))
        TokenMask(rows=((1, 2), (0,)), width=3)
    """

    rows: tuple[tuple[int, ...], ...]
    width: int

    @classmethod
    def of(cls, mask: Tensor, what: str = "positions") -> "TokenMask":
        """The columns that a mask marks.

        Shapes: `[column]`, or `[row, column]`

        Raises:
            InputError: it has other axes, or marks nothing.
        """
        if mask.ndim not in (1, 2) or not bool(mask.any()):
            raise InputError(
                f"{what} is a mask of bools with shape {list(mask.shape)}"
                f"{'' if mask.ndim in (1, 2) else ', not [column] or [row, column]'}"
                f"{'' if bool(mask.any()) else ', and marks no token'}."
            )
        rows = mask.reshape(-1, mask.shape[-1])
        return cls(tuple(tuple(row.nonzero().flatten().tolist()) for row in rows), mask.shape[-1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice) -> "TokenMask":
        return replace(self, rows=self.rows[some])

    def of_rows(self, rows: Sequence[int]) -> "TokenMask":
        """The mask of some rows."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))

    def check(self, rows: int, width: int, real: Tensor | None, what: str) -> None:
        """Refuse a mask that is not one of a batch.

        Args:
            rows: of the batch.
            width: its columns.
            real: which of them hold tokens; None: all.
            what: the name of the argument, for messages.

        Raises:
            InputError: it has another shape, or marks padding.
        """
        if self.width != width or len(self.rows) not in (1, rows):
            raise InputError(
                f"{what} is a mask of bools of shape {[len(self.rows), self.width]}, and the batch "
                f"has {[rows, width]}: rows and columns, padding included."
            )
        if real is None:
            return
        for row, own in enumerate(self.rows if len(self.rows) > 1 else self.rows * rows):
            padding = [column for column in own if not bool(real[row, column])]
            if padding:
                raise InputError(
                    f"{what} is a mask of bools that marks column {padding[0]} of example {row}, "
                    "which is padding. Make it of the ids that are run; generate pads on the left."
                )

    def tokens(self, real: Tensor | None) -> tuple[tuple[int, ...], ...]:
        """The numbers of the marked tokens in their texts."""
        if real is None:
            return self.rows
        every = self.rows if len(self.rows) > 1 else self.rows * len(real)
        before = real.long().cumsum(-1) - 1
        return tuple(tuple(before[row, list(own)].tolist()) for row, own in enumerate(every))


def as_positions(
    given: Any, what: str = "positions", tuples: Literal["several", "slice"] = "several"
) -> Any:
    """Positions in one form: the one parser of all arguments that say which positions.

    Args:
        given: None for all; an int; "last"; a slice; a list, range, array or tensor of ints; a list
            of such lists, one for each example; a mask of bools, `[column]` or `[row, column]`.
        what: the name of the argument, for messages.
        tuples: whether a tuple of ints is several positions, or the `(start, stop, step)` of a
            slice.

    Returns:
        None, "last", an int, a slice, a tuple of ints, a tuple of tuples, or a `TokenMask`.

    Raises:
        InputError: something that means no positions.

    Example:
        >>> as_positions(torch.tensor([0, 2])), as_positions([[0], [1, 2]]), as_positions((1, 3))
        ((0, 2), ((0,), (1, 2)), (1, 3))
        >>> as_positions((1, 3), tuples="slice"), as_positions([False, True])
        (slice(1, 3, None), TokenMask(rows=((1,),), width=2))
    """
    if isinstance(given, str) and given != "last":
        raise InputError(f"{what} is {given!r}; the only word that it can be is 'last'.")
    if given is None or isinstance(given, slice | str | TokenMask):
        return given
    if tuples == "slice" and isinstance(given, tuple) and all(map(_is_bound, given)):
        return slice(*given)
    plain = given.tolist() if isinstance(given, Tensor | ndarray) else given
    plain = list(plain) if isinstance(plain, range) else plain
    if is_int(plain):
        return int(plain)  # type: ignore[arg-type]
    if isinstance(plain, list | tuple) and plain:
        if all(map(is_int, plain)):
            return tuple(map(int, plain))
        rows = [list(row) if isinstance(row, list | tuple | range) else [None] for row in plain]
        if all(isinstance(one, bool) for one in plain) or _are_bools(rows):
            return TokenMask.of(torch.tensor(plain), what)
        if all(is_int(column) for row in rows for column in row):
            return tuple(tuple(map(int, row)) for row in rows)
    raise InputError(
        f"{what} is None, 'last', an int, a slice, a list of ints, a list of such lists, one for "
        f"each example, or a mask of bools; not {given!r}."
    )


def is_int(given: Any) -> bool:
    """Whether something is an index: an int, or numpy's."""
    return isinstance(given, Integral) and not isinstance(given, bool)


def by_row(found: Any) -> bool:
    """Whether positions, as `as_positions` gives them, are lists for the rows."""
    return isinstance(found, tuple) and isinstance(found[0], tuple)


def _is_bound(given: Any) -> bool:
    return given is None or is_int(given)


def _are_bools(rows: list[list[Any]]) -> bool:
    return (
        len({len(row) for row in rows}) == 1
        and all(isinstance(one, bool) for row in rows for one in row)
        and bool(rows[0])
    )
