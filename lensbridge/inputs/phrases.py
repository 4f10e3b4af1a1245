"""Where a phrase stands in a text: the positions of the tokens that contain it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError, TokenError
from lensbridge.inputs.prompts import Encoded, Side, is_text, plain_input
from lensbridge.inputs.tokens import Tokens, as_ids, as_tensor
from lensbridge.tensors.positions import Count, check_count

_SHOWN = 40
"""How many tokens of a text a message has."""


def positions_of(
    tokens: Tokens,
    phrase: str | Sequence[str],
    given: Any,
    occurrence: int | None = 0,
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
    count: Count = "tokens",
) -> list[int] | list[list[int]]:
    """See `model.positions_of`."""
    check_count(count)
    if occurrence is not None and (isinstance(occurrence, bool) or not isinstance(occurrence, int)):
        raise InputError(
            f"occurrence is a number, from 0, or None for all of them, not {occurrence!r}."
        )
    rows = _rows(tokens, given, prepend_bos, padding_side)
    phrases: list[Any] = [phrase] * len(rows.ids)
    if isinstance(phrase, list | tuple):
        phrases = list(phrase)
    if len(phrases) != len(rows.ids):
        raise InputError(
            f"There are {len(phrases)} phrases, one for each example, and {len(rows.ids)} examples."
        )
    found = []
    for row, (one, ids, mask) in enumerate(zip(phrases, rows.ids, rows.mask, strict=True)):
        real = mask.bool().nonzero().flatten().tolist()
        where = f" of example {row}" if len(rows.ids) > 1 else ""
        text = DecodedText(tokens, tuple(ids[mask.bool()].tolist()))
        positions = text.positions(one, occurrence, where)
        found.append([real[i] for i in positions] if count == "columns" else positions)
    return found if rows.several else found[0]


@dataclass(frozen=True)
class _Rows:
    """Rows of ids with their padding."""

    ids: Tensor
    mask: Tensor
    several: bool


def _rows(tokens: Tokens, given: Any, prepend_bos: bool | None, side: Side | None) -> _Rows:
    """The rows of an input; several are those of which `to_str_tokens` gives a list of lists."""
    plain = plain_input(given)
    if isinstance(plain, Encoded) or is_text(plain):
        rows = tokens.encode(plain, prepend_bos, side)
        single = isinstance(plain, str) or (isinstance(plain, list | tuple) and _is_chat(plain))
        return _Rows(rows.ids, rows.mask, not single)
    mask = None
    if isinstance(plain, Mapping):
        if "input_ids" not in plain:
            raise InputError(f"A mapping needs input_ids; this one has {', '.join(plain)}.")
        plain, mask = plain["input_ids"], plain.get("attention_mask")
    ids = as_ids(plain)
    if not ids.numel():
        raise InputError("There is no text to find a phrase in.")
    several = ids.ndim == 2 and len(ids) > 1
    ids = ids.reshape(-1, ids.shape[-1]).cpu()
    real = torch.ones_like(ids) if mask is None else as_tensor(mask).reshape(ids.shape).cpu()
    return _Rows(ids, real, several)


def _is_chat(plain: Sequence[Any]) -> bool:
    return bool(plain) and isinstance(plain[0], Mapping)


@dataclass(frozen=True)
class DecodedText:
    """A text as its tokens decode to it.

    Args:
        tokens: the tokenizer.
        ids: of the text.
    """

    tokens: Tokens
    ids: tuple[int, ...]

    def _decoded(self, count: int, special: bool) -> str:
        """The text of the first tokens."""
        decode: Any = self.tokens.need().decode
        plain = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        return str(decode(list(self.ids[:count]), **plain))

    def text(self, special: bool = False) -> str:
        """The whole text, with or without special tokens such as BOS."""
        return self._decoded(len(self.ids), special)

    @cached_property
    def _special(self) -> tuple[str, ...]:
        return tuple(self.tokens.need().all_special_tokens)

    def positions(self, phrase: str, occurrence: int | None = 0, where: str = "") -> list[int]:
        """The positions of the tokens that contain a phrase.

        Args:
            phrase: a part of the text.
            occurrence: which one, from 0; negative ones count from the last; None: all.
            where: which text it is, for messages.

        Raises:
            TokenError: the text does not have it, or not so often.
            InputError: the phrase is empty.
        """
        if not isinstance(phrase, str) or not phrase.strip():
            raise InputError(f"A phrase is a part of the text, not {phrase!r}.")
        special = any(one in phrase for one in self._special)
        whole = self.text(special)
        wanted, starts = self._starts(phrase, whole)
        if not starts:
            raise TokenError(self._missing(phrase, whole, where))
        if occurrence is not None and not -len(starts) <= occurrence < len(starts):
            raise TokenError(
                f"{phrase!r} occurs {_times(len(starts))} in the text{where}, so there is no "
                f"occurrence {occurrence}; they count from 0."
            )
        chosen = starts if occurrence is None else [starts[occurrence]]
        spans = [self._span(start, start + len(wanted), whole, special) for start in chosen]
        return sorted({position for span in spans for position in span})

    def _starts(self, phrase: str, whole: str) -> tuple[str, list[int]]:
        """A form of the phrase that the text has, and where it begins.

        A tokenizer may change what it is given (lower case, spaces), and a text has no space before
        its first word.
        """
        decode: Any = self.tokens.need().decode
        ids = self.tokens.need()(phrase.strip(), add_special_tokens=False)["input_ids"]
        changed = str(decode(ids, clean_up_tokenization_spaces=False)).strip()
        for form in (phrase, phrase.strip(), changed):
            starts = [i for i in range(len(whole)) if form and whole.startswith(form, i)]
            if starts:
                lead = len(form) - len(form.lstrip())
                return form.strip(), [start + lead for start in _apart(starts, len(form))]
        return phrase, []

    def _span(self, start: int, stop: int, whole: str, special: bool) -> range:
        """The tokens of some characters, also those that hold a part of one."""
        first = self._first(start + 1, whole, special)
        while first and self._ends_inside(first, whole, special):
            first -= 1
        return range(first, self._first(stop, whole, special) + 1)

    def _first(self, end: int, whole: str, special: bool) -> int:
        """The first token up to which so many characters of the text are decoded."""
        low, high = 0, len(self.ids) - 1
        while low < high:
            middle = (low + high) // 2
            if self._reached(middle + 1, whole, special) >= end:
                high = middle
            else:
                low = middle + 1
        return low

    def _reached(self, count: int, whole: str, special: bool) -> int:
        pairs = enumerate(zip(self._decoded(count, special), whole, strict=False))
        held = -1
        for held, (one, other) in pairs:
            if one != other:
                return held
        return held + 1

    def _ends_inside(self, count: int, whole: str, special: bool) -> bool:
        """Whether the first tokens end inside a character, of which they have some bytes only."""
        return not whole.startswith(self._decoded(count, special))

    def _missing(self, phrase: str, whole: str, where: str) -> str:
        """The message for a phrase that the text does not have."""
        found = whole.lower().find(phrase.strip().lower())
        near = whole[found : found + len(phrase.strip())]
        hint = f" It has {near!r}, in other letters." if found >= 0 else ""
        shown = self.tokens.to_str_tokens(torch.tensor(self.ids[:_SHOWN]))
        more = f" and {len(self.ids) - _SHOWN} more" if len(self.ids) > _SHOWN else ""
        return f"{phrase!r} does not occur in the text{where}.{hint} Its tokens are {shown}{more}."


def _apart(starts: list[int], size: int) -> list[int]:
    """Occurrences that do not overlap, from the first on."""
    found: list[int] = []
    for start in starts:
        if not found or start >= found[-1] + size:
            found.append(start)
    return found


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
