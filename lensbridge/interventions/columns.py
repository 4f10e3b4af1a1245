"""Columns: positions of a whole run, and which of them one pass computes.

A run is a prompt and, in generation, the tokens that are added to it. Its columns are counted from
0 through all passes, padding included. So an intervention at some columns does the same whether
keys and values are kept from pass to pass or computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from numpy import ndarray
from torch import Tensor

from lensbridge.errors import InputError

Positions: TypeAlias = (
    int | Literal["last"] | slice | Sequence[int] | Sequence[Sequence[int]] | Tensor | None
)
"""Which columns: None for all; one; a slice; a list for all examples, or a list of lists, one for
each example (of any lengths). Negative ones count from the end of the prompt; -1 also means every
column that generation adds. "last" is the last token of each row's prompt, also where rows are
padded on the right, and every column that generation adds."""

NO_COLUMN = -(2**40)
"""Fills up the lists of examples that have fewer columns than others."""


@dataclass(frozen=True)
class Window:
    """The columns that one pass computes of a point.

    Args:
        rows: examples.
        start: its first column.
        end: the column after its last.
        prompt: columns of the first pass.
        mask: `[rows, column]`, 1 for tokens, or None if nothing is masked.
    """

    rows: int
    start: int
    end: int
    prompt: int
    mask: Tensor | None = None

    def last(self, device: torch.device) -> Tensor:
        """Shapes: `[rows, 1]`, the column of each row's last prompt token."""
        if self.mask is None or self.mask.shape[1] < self.prompt:
            return torch.full((self.rows, 1), self.prompt - 1, device=device)
        real = self.mask[:, : self.prompt].to(device).bool()
        places = torch.arange(self.prompt, device=device)
        return torch.where(real, places, -1).amax(-1, keepdim=True).expand(self.rows, -1)

    def made(self, device: torch.device) -> Tensor:
        """Shapes: `[1, n]`, the columns of this pass that generation added."""
        return torch.arange(max(self.prompt, self.start), self.end, device=device)[None]

    def is_token(self, columns: Tensor) -> Tensor:
        """Which of some columns hold tokens. Shapes: `[rows or 1, n]` -> `[rows, n]`"""
        columns = columns.expand(self.rows, -1)
        if self.mask is None:
            return torch.ones_like(columns, dtype=torch.bool)
        mask = self.mask.to(columns.device).bool().expand(self.rows, -1)
        known = (columns >= 0) & (columns < mask.shape[1])
        found = mask.gather(1, columns.clamp(0, mask.shape[1] - 1))
        return found & known if mask.shape[1] >= self.end else found | ~known


def normalized(given: Positions) -> Any:
    """Positions in one form: None, "last", an int, a slice, a tuple, or a tuple of tuples.

    Raises:
        InputError: something that means no positions.
    """
    if given is None or isinstance(given, slice) or (isinstance(given, str) and given == "last"):
        return given
    plain = given.tolist() if isinstance(given, Tensor | ndarray) else given
    if isinstance(plain, range):
        plain = list(plain)
    if is_int(plain):
        return int(plain)  # type: ignore[arg-type]
    if isinstance(plain, list | tuple) and plain:
        if all(is_int(column) for column in plain):
            return tuple(int(column) for column in plain)
        rows = [tuple(row) if isinstance(row, list | tuple | range) else None for row in plain]
        if all(row is not None and all(is_int(column) for column in row) for row in rows):
            return tuple(rows)
    raise InputError(
        "positions is None, 'last', an int, a slice, a list of ints, or a list of such lists, one "
        f"for each example; not {given!r}."
    )


def is_int(given: Any) -> bool:
    """Whether something is an index: an int, or numpy's."""
    return isinstance(given, Integral) and not isinstance(given, bool)


def per_example(asked: Any) -> bool:
    """Whether normalized positions have a list for each example."""
    return isinstance(asked, tuple) and isinstance(asked[0], tuple)


def columns_of(asked: Any, window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """The columns that normalized positions mean, and which of them this pass computes.

    Shapes: both `[rows or 1, n]`.
    """
    found = _meant(asked, window, device)
    return found, (found >= window.start) & (found < window.end)


def _meant(asked: Any, window: Window, device: torch.device) -> Tensor:
    if asked is None:
        return torch.arange(window.start, window.end, device=device)[None]
    if isinstance(asked, slice):
        return _of_slice(asked, window, device)
    if asked == "last":
        made = window.made(device).expand(window.rows, -1)
        return torch.cat([window.last(device), made], dim=1)
    return _of_lists(asked, window, device)


def _of_slice(asked: slice, window: Window, device: torch.device) -> Tensor:
    """Bounds count in the prompt; a slice without an upper one includes what generation adds."""
    start, stop, step = asked.indices(window.prompt)
    if asked.start is not None and asked.start > window.prompt:
        start = asked.start
    if asked.stop is None and step > 0:
        stop = max(window.end, window.prompt)
    elif asked.stop is not None and asked.stop > window.prompt:
        stop = asked.stop
    return (
        torch.arange(start, stop, step, device=device)[None]
        if step > 0
        else torch.tensor([[*range(start, stop, step)]], dtype=torch.long, device=device)
    )


def _of_lists(asked: Any, window: Window, device: torch.device) -> Tensor:
    rows = asked if per_example(asked) else ((asked,) if isinstance(asked, tuple) else ((asked,),))
    width = max(len(row) for row in rows)
    given = torch.tensor([[*row, *[NO_COLUMN] * (width - len(row))] for row in rows], device=device)
    found = torch.where(given < 0, given + window.prompt, given)
    found = torch.where(given == NO_COLUMN, given, found)
    last = (given == -1).any(-1, keepdim=True)
    made = window.made(device)
    if made.shape[1] and bool(last.any()):
        found = torch.cat([found, torch.where(last, made, NO_COLUMN)], dim=1)
    return repeated(found, window.rows, "positions")


def repeated(given: Tensor, rows: int, what: str) -> Tensor:
    """Rows of examples for the rows of a run; each is repeated if examples have several beams.

    Raises:
        InputError: their number is neither 1 nor that of the run's examples.
    """
    if len(given) in (1, rows):
        return given
    if rows % len(given) == 0:
        return given.repeat_interleave(rows // len(given), dim=0)
    raise InputError(f"{what} has {len(given)} examples; the run has {rows}.")
