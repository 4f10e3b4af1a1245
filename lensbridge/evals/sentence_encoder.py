"""Sentences of the indirect-object task as tokens, with the columns of their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.evals.sentences import Pieces
from lensbridge.inputs.prompts import Encoded


@dataclass(frozen=True)
class Prompts:
    """Rows of tokens up to the last one before the answer, padded on the right.

    A run takes them as its input: `model.run_with_cache(dataset.corrupted)`.

    Args:
        tokens: the ids.
        mask: 1 for tokens, 0 for padding.
        prepend_bos: whether the rows begin with BOS; None if that is not known.

    Shapes: tokens and mask `[sample, pos]`
    """

    tokens: Tensor
    mask: Tensor
    prepend_bos: bool | None = None

    def as_input(self) -> Encoded:
        """What a run takes of it."""
        return Encoded(self.tokens, self.mask, self.prepend_bos)


class SentenceEncoder:
    """Makes tokens of sentences.

    Args:
        tokenizer: a HuggingFace tokenizer.
        prepend_bos: begin with BOS if the tokenizer has one.
    """

    def __init__(self, tokenizer: Any, prepend_bos: bool) -> None:
        self.tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        self._bos = [] if not prepend_bos or bos is None else [int(bos)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def tokens(self, pieces: Pieces) -> tuple[list[int], dict[str, list[int]]]:
        """Ids of a sentence, and the columns in which each slot ends.

        A sentence is encoded as a whole; the end of a slot is the number of tokens of the text up
        to it.
        """
        text, ends = "", []
        for slot, part in pieces:
            text += part
            if slot:
                ends.append((slot, len(text)))
        ids = self._bos + self.encode(text)
        places: dict[str, list[int]] = {}
        for slot, end in ends:
            column = len(self._bos) + len(self.encode(text[:end])) - 1
            places.setdefault(slot, []).append(column)
        return ids, places

    def prompts(self, sentences: Sequence[Pieces]) -> Prompts:
        """Sentences without their answers, as rows of tokens."""
        rows = [torch.tensor(self.tokens(pieces)[0][:-1]) for pieces in sentences]
        pad = self.tokenizer.pad_token_id
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad or 0)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).long()
        return Prompts(tokens, mask, bool(self._bos))
