"""Rows of tokens that a model runs, made of texts; each knows where the next one begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lensbridge.errors import InputError
from lensbridge.harvest.texts import TextFile
from lensbridge.hooked_model import HookedModel

Layout: TypeAlias = Literal["lines", "packed"]
"""lines: a row for each text, cut after `length` tokens. packed: texts joined with EOS and cut into
rows of `length` tokens, so that nothing is cut off and nothing is padded but the last row."""

LAYOUTS: tuple[Layout, ...] = ("lines", "packed")


@dataclass(frozen=True)
class Place:
    """Where in a file the next row begins.

    Args:
        offset: of a line, in bytes.
        line: its number, from 0.
        token: how many of its tokens were in earlier rows.
    """

    offset: int = 0
    line: int = 0
    token: int = 0


@dataclass
class Row:
    """Tokens that are run together.

    Args:
        ids: the tokens.
        lines: for each token the line that it is of; -1 for a BOS that was put before them.
        after: where the next row begins.
    """

    ids: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    after: Place = field(default_factory=Place)


@dataclass(frozen=True)
class Rows:
    """Rows of a file for one model.

    Args:
        model: whose tokenizer is used.
        file: the texts.
        layout: how texts become rows.
        length: tokens of a row at most, BOS included.
    """

    model: HookedModel
    file: TextFile
    layout: Layout
    length: int

    def since(self, place: Place) -> Iterator[Row]:
        """The rows from a place on."""
        return self._lines(place) if self.layout == "lines" else self._packed(place)

    def _lines(self, place: Place) -> Iterator[Row]:
        for line in self.file.lines(place.offset, place.line):
            if not line.text.strip():
                continue
            ids = self.model.to_tokens(line.text, move_to_device=False)[0].tolist()[: self.length]
            yield Row(ids, [line.number] * len(ids), Place(line.next, line.number + 1))

    def _packed(self, place: Place) -> Iterator[Row]:
        row = self._begun()
        for line in self.file.lines(place.offset, place.line):
            ids = self._with_eos(line.text)
            start = place.token if line.number == place.line else 0
            while start < len(ids):
                taken = ids[start : start + self.length - len(row.ids)]
                row.ids += taken
                row.lines += [line.number] * len(taken)
                start += len(taken)
                if len(row.ids) == self.length:
                    whole = start == len(ids)
                    row.after = (
                        Place(line.next, line.number + 1)
                        if whole
                        else Place(line.offset, line.number, start)
                    )
                    yield row
                    row = self._begun()
            row.after = Place(line.next, line.number + 1)
        if any(number >= 0 for number in row.lines):
            yield row

    def _begun(self) -> Row:
        bos = self.model.tokens.special("bos")
        first = [] if bos is None or not self.model.tokens.default_prepend_bos else [bos]
        return Row(list(first), [-1] * len(first))

    def _with_eos(self, text: str) -> Sequence[int]:
        tokenizer: Any = self.model.tokenizer
        if not text.strip():
            return []
        if tokenizer.eos_token_id is None:
            raise InputError(
                "The tokenizer has no EOS token, which 'packed' needs between texts: use 'lines'."
            )
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]
