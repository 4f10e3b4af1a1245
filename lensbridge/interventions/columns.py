"""Columns: positions of a whole run, and which of them one pass computes.

A run is a prompt and, in generation, the tokens that are added to it. Its columns are counted from
0 through all passes, padding included. So an intervention at some columns does the same whether
keys and values are kept from pass to pass or computed again.

Positions that a user gives count the tokens of each text. Where the prompts are padded, they are
other columns in each row (`tensors/positions.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.tensors.position_forms import TokenMask, as_positions, by_row
from lensbridge.tensors.positions import Count, columns_of_tokens, padded

Positions: TypeAlias = (
    int | Literal["last"] | slice | Sequence[int] | Sequence[Sequence[int]] | Tensor | None
)
"""Which tokens of each text: None for all; one; a slice; a list for all examples, or a list of
lists, one for each example (of any lengths). Negative ones count from the end of the prompt; -1
also means every token that generation adds, and "last" is the same. A mask of bools, `[column]` or
`[row, column]`, has an entry for each column of the batch, padding included."""

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
        keys_mask: that of another text whose columns are attended to, the encoder's.
        special: `[rows, column]`, which columns of the pass hold special tokens; None if it is not
            known, or not asked for.
        examples: how many examples the rows are of, if some have several (beams); None: one each.
        numbered: the numbers of the rows in the run, `[rows]`; None: all rows, from 0 on.
    """

    rows: int
    start: int
    end: int
    prompt: int
    mask: Tensor | None = None
    keys_mask: Tensor | None = None
    special: Tensor | None = None
    examples: int | None = None
    numbered: Tensor | None = None

    @property
    def n_examples(self) -> int:
        """How many examples the rows are of."""
        return self.rows if self.examples is None else self.examples

    def rows_of(self, examples: Sequence[int], device: torch.device) -> Tensor:
        """The rows of some examples. Shapes: `[n]`"""
        copies = self.rows // self.n_examples
        first = torch.tensor(examples, device=device)[:, None] * copies
        return (first + torch.arange(copies, device=device)).flatten()

    def chosen(self, rows: Tensor) -> "Window":
        """The same columns of some rows alone."""

        def of(one: Tensor | None) -> Tensor | None:
            return None if one is None else one.expand(self.rows, -1)[rows.to(one.device)]

        copies = self.rows // self.n_examples
        every = torch.arange(self.rows) if self.numbered is None else self.numbered
        return replace(
            self,
            rows=len(rows),
            mask=of(self.mask),
            keys_mask=of(self.keys_mask),
            special=of(self.special),
            examples=None if self.examples is None else len(rows) // copies,
            numbered=every[rows.to(every.device)],
        )

    @property
    def row_numbers(self) -> list[int]:
        """The number of each row in the run."""
        return list(range(self.rows)) if self.numbered is None else self.numbered.tolist()

    @cached_property
    def real(self) -> Tensor | None:
        """Which columns of the prompt are tokens; None if all are, or if it is not known.

        Shapes: `[rows, prompt]`
        """
        if self.mask is None or self.mask.shape[1] < self.prompt:
            return None
        real = padded(self.mask[:, : self.prompt])
        return None if real is None else real.expand(self.rows, -1)

    def last(self, device: torch.device) -> Tensor:
        """Shapes: `[rows, 1]`, the column of each row's last prompt token."""
        if self.mask is None or self.mask.shape[1] < self.prompt:
            return torch.full((self.rows, 1), self.prompt - 1, device=device)
        real = self.mask[:, : self.prompt].to(device).bool()
        places = torch.arange(self.prompt, device=device)
        return torch.where(real, places, -1).amax(-1, keepdim=True).expand(self.rows, -1)

    def made(self, device: torch.device) -> Tensor:
        """Shapes: `[1, n]`, the columns of this pass that generation added."""
        first = max(self.prompt, self.start)  # a pass may end before the prompt does
        return torch.arange(first, max(self.end, first), device=device)[None]

    def is_token(self, columns: Tensor) -> Tensor:
        """Which of some columns hold tokens. Shapes: `[rows or 1, n]` -> `[rows, n]`"""
        columns = columns.expand(self.rows, -1)
        if self.mask is None:
            return torch.ones_like(columns, dtype=torch.bool)
        mask = self.mask.to(columns.device).bool().expand(self.rows, -1)
        known = (columns >= 0) & (columns < mask.shape[1])
        found = mask.gather(1, columns.clamp(0, mask.shape[1] - 1))
        return found & known if mask.shape[1] >= self.end else found | ~known

    def counted(self, device: torch.device) -> Tensor:
        """Which columns of the pass count in a mean: its tokens, but for special ones if there are
        others. Shapes: `[rows, column]`
        """
        tokens = self.is_token(torch.arange(self.start, self.end, device=device)[None])
        if self.special is None:
            return tokens
        others = tokens & ~self.special.to(device)
        return others if bool(others.any()) else tokens

    def numbers(self, columns: Tensor) -> Tensor:
        """The number of each column's token in its text. Shapes: as `columns`"""
        if self.real is None:
            return columns
        real = self.real.to(columns.device)
        before = torch.cat([real.cumsum(-1), real.new_zeros(len(real), 1, dtype=torch.long)], -1)
        known = before.gather(1, columns.clamp(0, self.prompt - 1).expand(self.rows, -1)) - 1
        later = columns - self.prompt + real.sum(-1, keepdim=True)
        return torch.where(columns < self.prompt, known, later)


def normalized(given: Positions) -> Any:
    """Positions in one form: None, "last", an int, a slice, a tuple, a tuple of tuples, or a mask.

    Raises:
        InputError: something that means no positions.
    """
    return as_positions(given, "positions")


def per_example(asked: Any) -> bool:
    """Whether normalized positions have a list for each example, or a row of a mask."""
    return by_row(asked) or (isinstance(asked, TokenMask) and len(asked) > 1)


def of_examples(asked: Any, examples: Sequence[int]) -> Any:
    """Normalized positions that have a list for each example, of some examples."""
    if isinstance(asked, TokenMask):
        return asked.of_rows(examples)
    return tuple(asked[example] for example in examples)


def columns_of(
    asked: Any, window: Window, device: torch.device, count: Count = "tokens"
) -> tuple[Tensor, Tensor]:
    """The columns that normalized positions mean, and which of them this pass computes.

    Shapes: both `[rows or 1, n]`.
    """
    found = _meant(asked, window, device, count)
    return found, (found >= window.start) & (found < window.end)


def _meant(asked: Any, window: Window, device: torch.device, count: Count) -> Tensor:
    if asked is None:
        return torch.arange(window.start, window.end, device=device)[None]
    if isinstance(asked, TokenMask):
        return _of_lists(asked.rows, window, device)
    if count == "tokens" and asked != "last" and window.real is not None:
        return _of_tokens(asked, window, window.real.to(device))
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
    given = _listed(asked, device)
    found = torch.where(given < 0, given + window.prompt, given)
    found = torch.where(given == NO_COLUMN, given, found)
    found = _with_made(found, given, window)
    return repeated(found, window.rows, "positions")


def _listed(asked: Any, device: torch.device) -> Tensor:
    """Lists of positions as a tensor, the shorter ones filled up. Shapes: `[examples or 1, n]`"""
    rows = asked if by_row(asked) else ((asked,) if isinstance(asked, tuple) else ((asked,),))
    width = max(len(row) for row in rows)
    filled = [[*row, *[NO_COLUMN] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=device)


def _with_made(found: Tensor, given: Tensor, window: Window) -> Tensor:
    """Columns, and those that generation added where -1 is given."""
    last = (given == -1).any(-1, keepdim=True)
    made = window.made(found.device)
    if made.shape[1] and bool(last.any()):
        found = torch.cat([found, torch.where(last, made, NO_COLUMN).expand(len(found), -1)], dim=1)
    return found


def _of_tokens(asked: Any, window: Window, real: Tensor) -> Tensor:
    """The columns of tokens of each row, where prompts are padded. Shapes: `[rows, n]`"""
    sizes = real.sum(-1, keepdim=True)
    if isinstance(asked, slice):
        made = max(window.end - window.prompt, 0)
        rows = tuple(_tokens_of_slice(asked, size, made) for size in sizes.flatten().tolist())
        given = _listed(rows, real.device)
    else:
        given = repeated(_listed(asked, real.device), window.rows, "positions")
    tokens = torch.where(given < 0, given + sizes, given)
    later = window.prompt + tokens - sizes
    found = torch.where(tokens < sizes, columns_of_tokens(real, tokens), later)
    found = torch.where(tokens < 0, NO_COLUMN, found)
    return found if isinstance(asked, slice) else _with_made(found, given, window)


def _tokens_of_slice(asked: slice, size: int, made: int) -> tuple[int, ...]:
    """As `_of_slice`, for one row with so many tokens in its prompt."""
    start, stop, step = asked.indices(size)
    if asked.start is not None and asked.start > size:
        start = asked.start
    if asked.stop is None and step > 0:
        stop = size + made
    elif asked.stop is not None and asked.stop > size:
        stop = min(asked.stop, size + made)
    return tuple(range(start, stop, step))


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
