"""Documents to token ids, by the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lensbridge.errors import InputError
from lensbridge.harvest.source import Document
from lensbridge.harvest.spec import Separator
from lensbridge.inputs.chat import written
from lensbridge.inputs.tokens import Tokens

_TOGETHER = 64
"""Documents that the tokenizer takes at once."""


@dataclass(frozen=True)
class Coded:
    """A document as ids.

    Args:
        document: what was encoded.
        ids: its tokens, without BOS if it was text.
        own_start: whether BOS is not put before it: ids and chats begin as they begin.
    """

    document: Document
    ids: list[int]
    own_start: bool


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups; those before one that cannot be read come before the error."""
    group: list[Document] = []
    try:
        for one in documents:
            group.append(one)
            if len(group) == _TOGETHER:
                yield group
                group = []
    except InputError:
        if group:
            yield group
        raise
    if group:
        yield group


@dataclass(frozen=True)
class Encoder:
    """Encodes documents.

    Args:
        tokens: the tokenizer.
        vocabulary: how many ids there are.
    """

    tokens: Tokens
    vocabulary: int

    def encoded(self, documents: Iterable[Document]) -> Iterator[Coded]:
        """Documents as ids, in order; empty ones are left out.

        Raises:
            InputError: one cannot be tokenized, or has an id that is none.
            TokenizerMissingError: text, and the model has no tokenizer.
        """
        for together in _groups(documents):
            yield from (one for one in self._batch(together) if one.ids)

    def _batch(self, documents: Sequence[Document]) -> Iterator[Coded]:
        """The documents of a group; those before one that fails come first."""
        try:
            yield from self._together(documents)
        except InputError:
            if len(documents) == 1:
                raise
            for one in documents:
                yield from self._together([one])

    def _together(self, documents: Sequence[Document]) -> list[Coded]:
        texts = [one.content for one in documents if isinstance(one.content, str)]
        ids = iter(self._texts(texts, documents) if texts else [])
        return [
            Coded(one, next(ids), False)
            if isinstance(one.content, str)
            else Coded(one, self._listed(one), True)
            for one in documents
        ]

    def _texts(self, texts: list[str], documents: Sequence[Document]) -> list[list[int]]:
        tokenizer: Any = self.tokens.need()
        try:
            found: list[list[int]] = tokenizer(
                texts, add_special_tokens=False, verbose=False, return_attention_mask=False
            )["input_ids"]
        except Exception as error:
            number = documents[0].place.document
            raise InputError(
                f"Document {number} cannot be tokenized: {type(error).__name__}: {error}. "
                f"It is {texts[0]!r:.60}"
            ) from error
        return [[] if not text.strip() else ids for text, ids in zip(texts, found, strict=True)]

    def _listed(self, document: Document) -> list[int]:
        """Ids as they are given, and chats by the template of the tokenizer."""
        content, number = document.content, document.place.document
        if content and isinstance(content[0], dict):
            return self._chat(content, number)
        ids: list[int] = content  # type: ignore[assignment]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise InputError(
                f"Document {number} has the id {wrong}; the model has ids 0 to "
                f"{self.vocabulary - 1}."
            )
        return ids

    def _chat(self, messages: Any, number: int) -> list[int]:
        try:
            text = written(self.tokens.need(), messages, add_generation_prompt=False)
            ids: list[int] = self.tokens.need()(text, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
        except Exception as error:
            raise InputError(
                f"Document {number} is a chat that the tokenizer's template does not take: {error}"
            ) from error
        return ids

    def first(self, wanted: bool | None) -> int | None:
        """The BOS that rows begin with, or None.

        Raises:
            InputError: it is wanted, and the tokenizer has none.
        """
        if wanted is False or (wanted is None and not self.tokens.default_prepend_bos):
            return None
        if wanted is None and self.tokens.tokenizer is None:
            return None
        bos = self.tokens.special("bos")
        if wanted and bos is None:
            raise InputError("bos=True, but the tokenizer has no BOS token.")
        return bos

    def between(self, separator: Separator) -> int | None:
        """The id of what stands after each document, or None.

        Raises:
            InputError: the tokenizer has no such token.
        """
        if separator is None or isinstance(separator, int):
            return separator
        if self.tokens.tokenizer is None:
            raise InputError(
                f"separator={separator!r} needs a tokenizer, and the model has none: pass an id, "
                "or separator=None."
            )
        found = self.tokens.need().special_tokens_map.get(f"{separator}_token")
        if found is None:
            raise InputError(
                f"The tokenizer has no {separator} token: pass another separator, an id or None."
            )
        return int(self.tokens.need().convert_tokens_to_ids(found))
