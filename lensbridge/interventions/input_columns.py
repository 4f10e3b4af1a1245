"""InputColumns: the columns that an input has at a point; positions are checked against these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.positions import ColumnOwner, decoder_input, mask_of
from lensbridge.inputs.prepare import Prepared
from lensbridge.interventions.columns import NO_COLUMN, Window, columns_of, per_example
from lensbridge.interventions.region import Place
from lensbridge.interventions.source import SourceValues
from lensbridge.native.kv_cache import columns_in
from lensbridge.tensors.position_forms import TokenMask
from lensbridge.tensors.positions import Count, row_has, shown_slice

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class InputColumns:
    """The columns of an input at a point.

    Args:
        rows: examples.
        past: columns that are already in a key/value cache.
        prompt: columns up to the end of the input.
        new: columns that generation adds.
        mask: `[rows, column]`, 1 for tokens, or None if nothing is masked.
        numbers: of the examples in the input, where they are some of it.
    """

    rows: int
    past: int
    prompt: int
    new: int = 0
    mask: Tensor | None = None
    numbers: Sequence[int] | None = None

    def of_keys(self) -> "InputColumns":
        """The same for what is attended to: with the columns of the key/value cache."""
        return replace(self, past=0)

    def chosen(self, examples: Sequence[int]) -> "InputColumns":
        """The columns of some examples alone."""
        masked = self.mask is not None and len(self.mask) == self.rows
        mask = self.mask[list(examples)] if masked else self.mask  # type: ignore[index]
        return replace(self, rows=len(examples), mask=mask, numbers=examples)

    def _has(self, row: int, size: int) -> str:
        return row_has(row if self.numbers is None else self.numbers[row], size)

    def window(self, start: int, end: int) -> Window:
        """Some of the columns as those of a pass."""
        return Window(self.rows, start, end, self.prompt, self.mask)

    @property
    def real(self) -> Tensor | None:
        """Which columns are tokens; None if all are. Shapes: `[rows, prompt]`"""
        return self.window(0, self.prompt).real

    def check(self, asked: Any, what: str, count: Count = "tokens") -> None:
        """Refuse normalized positions that the input does not have.

        Raises:
            InputError: they are out of range, or lists for another number of examples.
        """
        if per_example(asked) and len(asked) not in (1, self.rows):
            raise InputError(
                f"{what}s are given in {len(asked)} lists; there are {self.rows} examples."
            )
        self.check_range(asked, what, count)

    def check_range(self, asked: Any, what: str, count: Count = "tokens") -> None:
        """Refuse normalized positions that are out of range.

        Raises:
            InputError: with the number of positions.
        """
        if isinstance(asked, TokenMask):
            asked.check(self.rows, self.prompt, self.real, f"{what}s")
            return
        if count == "tokens" and self.real is not None:
            self._check_tokens(asked, what, self.real)
            return
        for position in _ints(asked):
            column = position + self.prompt if position < 0 else position
            if not self.past <= column < self.prompt + self.new:
                raise InputError(f"{what} {position} is out of range; {self._described()}.")
        if isinstance(asked, slice):
            whole = self.window(self.past, self.prompt + self.new)
            if not bool(columns_of(asked, whole, _CPU, count)[1].any()):
                raise InputError(f"{what}s {shown_slice(asked)} are none; {self._described()}.")

    def _check_tokens(self, asked: Any, what: str, real: Tensor) -> None:
        """Refuse positions that are not tokens of every row that they are given for."""
        if asked is None or isinstance(asked, str):
            return
        _, there = columns_of(asked, self.window(self.past, self.prompt + self.new), _CPU)
        sizes = real.sum(-1).tolist()
        if isinstance(asked, slice):
            empty = (~there.any(-1)).nonzero().flatten().tolist()
            if empty:
                raise InputError(
                    f"{what}s {shown_slice(asked)} are none: {self._has(empty[0], sizes[empty[0]])}"
                    f"{self._held()}."
                )
            return
        lists = asked if per_example(asked) else (_ints(asked),)
        lists = lists * self.rows if len(lists) == 1 else lists
        if self.rows % len(lists):
            return  # `repeated` refuses these
        each = self.rows // len(lists)
        for row in range(self.rows):
            for i, position in enumerate(lists[row // each]):
                if not bool(there[row, i]):
                    raise InputError(
                        f"{what} {position} is out of range: {self._has(row, sizes[row])}"
                        f"{self._held()}; the rest of its row is padding. To count columns of the "
                        "batch instead, pass count='columns'."
                    )

    def _held(self) -> str:
        held = f", {self.past} of its columns are in the key/value cache" if self.past else ""
        return f"{held}, and generation adds {self.new}" if self.new else held

    def _described(self) -> str:
        held = f", {self.past} of them in the key/value cache" if self.past else ""
        more = f", and generation adds {self.new}" if self.new else ""
        return f"there are {self.prompt} positions{held}{more}"

    def width(self, asked: Any, later: bool, count: Count = "tokens") -> int:
        """How many columns positions mean; 1 if that differs between the passes of a generation."""
        width = columns_of(asked, self.window(self.past, self.prompt), _CPU, count)[0].shape[1]
        if not (later and self.new):
            return width
        following = self.window(self.prompt, self.prompt + 1)
        same = columns_of(asked, following, _CPU, count)[0].shape[1] == width
        return width if same and asked is not None else 1

    def counts(self, asked: Any, count: Count) -> Tensor:
        """How many columns positions mean in each row. Shapes: `[rows]`"""
        columns, _ = columns_of(asked, self.window(self.past, self.prompt), _CPU, count)
        return (columns != NO_COLUMN).sum(-1).expand(self.rows)


def _ints(asked: Any) -> list[int]:
    if asked is None or isinstance(asked, slice | str | TokenMask):
        return []
    if isinstance(asked, int):
        return [asked]
    return [column for row in (asked if per_example(asked) else (asked,)) for column in row]


def extent_of(
    place: Place, owner: ColumnOwner, prepared: Prepared, new: int, keys: bool = False
) -> InputColumns | None:
    """The columns that an input has at a point; None if only the run shows them.

    With `keys`, the columns that are attended to there.
    """
    tokens = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if place.axes.position is None or not place.axes.has_batch or tokens is None:
        return None
    if keys and place.looks_elsewhere:
        owner = "encoder"
    mask = mask_of(owner, prepared)
    if owner == "encoder":
        return InputColumns(tokens.shape[0], 0, tokens.shape[1], mask=mask)
    if owner == "tower":
        return None
    if owner == "decoder":
        decoded = decoder_input(prepared)
        if decoded is None:
            return None
        return InputColumns(len(decoded), 0, decoded.shape[1], new, mask)
    past = 0 if prepared.cache is None else columns_in(prepared.cache) or 0
    return InputColumns(tokens.shape[0], past, past + tokens.shape[1], new, mask)


def columns_of_source(given: SourceValues) -> InputColumns:
    """The columns of a source."""
    return InputColumns(given.window.rows, 0, given.window.end, mask=given.window.mask)
