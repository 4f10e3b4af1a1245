"""Text to tokens and back, with one rule for BOS and one for padding.

BOS: `prepend_bos=None` means the model's default (True). A text that begins with the BOS token
already gets no second one; a tokenizer without a BOS token prepends none. A chat has the special
tokens that its template writes, and no others unless `prepend_bos=True` is passed.
Padding: on the right unless asked otherwise, so that the tokens of a row stand where they would
stand alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.errors import InputError, TokenError, TokenizerMissingError
from lensbridge.inputs.chat import are_chats, is_chat, refuse_message, refuse_option, written
from lensbridge.inputs.prompts import (
    Encoded,
    Prompts,
    Side,
    is_one_text,
    is_text,
    plain_input,
)


@dataclass
class Tokens:
    """A tokenizer as the model uses it.

    Args:
        find: gives the tokenizer; called once, when text is met. Where there is none it gives
            None, or raises TokenizerMissingError with the reason.
        default_prepend_bos: what `prepend_bos=None` means.
        default_padding_side: what `padding_side=None` means.
    """

    find: Callable[[], Any]
    default_prepend_bos: bool = True
    default_padding_side: Side = "right"
    _found: list[Any] = field(default_factory=list)
    _missing: TokenizerMissingError | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""
        if not self._found:
            try:
                self._found.append(self.find())
            except TokenizerMissingError as error:
                self._missing = error
                self._found.append(None)
        return self._found[0]

    def need(self) -> Any:
        """The tokenizer.

        Raises:
            TokenizerMissingError: the model was loaded without one.
        """
        if self.tokenizer is None:
            raise self._missing or TokenizerMissingError(
                "This needs a tokenizer, and the model has none. "
                "Pass one: lensbridge.load(model, tokenizer=...), or pass token ids."
            )
        return self.tokenizer

    def encode(
        self,
        text: Prompts,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        limit: int | None = None,
        add_generation_prompt: bool | None = None,
    ) -> Encoded:
        """Texts, chats or prompts as rows of one padded tensor, each cut after `limit` tokens.

        Args:
            text: what is encoded.
            prepend_bos: as said above.
            padding_side: where short rows are padded; None means the default.
            limit: how many tokens of a row there may be.
            add_generation_prompt: whether a chat ends where the assistant's answer begins; None: it
                does unless the last message is the assistant's own.

        Raises:
            TokenizerMissingError: there is no tokenizer.
            InputError: nothing to run, a BOS that the tokenizer or the prompts do not have, a chat
                that the template does not take, or `add_generation_prompt` beside other texts.
        """
        given = plain_input(text)
        if is_chat(given) or are_chats(given):
            chats = [given] if is_chat(given) else list(given)
            given = [written(self.need(), one, add_generation_prompt) for one in chats]
            prepend_bos = bool(prepend_bos)
        else:
            refuse_option(add_generation_prompt)
            refuse_message(given)
        if isinstance(given, Encoded):
            given.require_bos(prepend_bos)
            return given.cut(limit).padded(self._side(padding_side))
        texts = [given] if isinstance(given, str) else list(given)
        bos = self._bos(prepend_bos)
        rows = [self._row(one, bos)[:limit] for one in texts]
        if not rows or not all(rows):
            raise InputError(f"There are no tokens in {text!r}; pass text, or prepend_bos=True.")
        width = max(map(len, rows))
        side = self._side(padding_side)
        pad = self.pad_token_id
        ids = [_padded(row, width, pad, side) for row in rows]
        mask = [_padded([1] * len(row), width, 0, side) for row in rows]
        first = self.special("bos")
        starts = first is not None and all(row[0] == first for row in rows)
        return Encoded(torch.tensor(ids), torch.tensor(mask), starts)

    def special(self, role: Literal["bos", "eos", "pad"]) -> int | None:
        """The id of a special token, or None where the tokenizer has no such token."""
        known = self.need()
        token = known.special_tokens_map.get(f"{role}_token")  # asking for its id logs an error
        return None if token is None else int(known.convert_tokens_to_ids(token))

    def _bos(self, prepend_bos: bool | None) -> int | None:
        wanted = self.default_prepend_bos if prepend_bos is None else prepend_bos
        bos = self.special("bos")
        if prepend_bos and bos is None:
            raise InputError("prepend_bos=True, but the tokenizer has no BOS token.")
        return bos if wanted else None

    def _row(self, text: str, bos: int | None) -> list[int]:
        if not isinstance(text, str):
            refuse_message(text)
            raise InputError(f"Expected text, got {type(text).__name__}.")
        ids: list[int] = self.need()(text, add_special_tokens=False)["input_ids"]
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _side(self, padding_side: Side | None) -> Side:
        side = padding_side or self.default_padding_side
        if side not in ("left", "right"):
            raise InputError(f"padding_side is 'left' or 'right', not {padding_side!r}.")
        return side

    @property
    def pad_token_id(self) -> int:
        """What fills short rows; the mask says where, so any id will do."""
        ids = (self.special("pad"), self.special("eos"), self.special("bos"))
        return next((one for one in ids if one is not None), 0)

    def to_string(self, ids: Any) -> str | list[str]:
        """Text of one row of ids, or of each of several."""
        rows = as_ids(ids)
        if rows.ndim > 1:
            return [str(self.to_string(row)) for row in rows]
        return self._decode(rows.reshape(-1).tolist())

    def _decode(self, ids: list[int]) -> str:
        return str(self.need().decode(ids, clean_up_tokenization_spaces=False))

    def to_str_tokens(
        self, given: Any, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> list[str] | list[list[str]]:
        """Each token as text: of a string or a row of ids a list, of several a list of lists."""
        given = plain_input(given)
        if is_one_text(given):
            return self._strings(self.encode(given, prepend_bos).ids[0])
        if is_text(given) or isinstance(given, Encoded):
            rows = self.encode(given, prepend_bos, padding_side)
            return [
                self._strings(ids[mask.bool()])
                for ids, mask in zip(rows.ids, rows.mask, strict=True)
            ]
        ids = as_ids(given)
        if ids.ndim == 2 and ids.shape[0] > 1:
            return [self._strings(row) for row in ids]
        return self._strings(ids.reshape(-1))

    def _strings(self, ids: Tensor) -> list[str]:
        """Each id as it reads inside a text.

        A decoder of the SentencePiece kind drops the space in front of the first word that it is
        given, so each token is decoded after another one, whose text is taken off again.
        """
        if self._has_no_decoder:
            return [self._decode([one]) for one in ids.tolist()]
        special = set(self.need().all_special_ids)
        before = self._row("a", None)
        start = self._decode(before)

        def string(one: int) -> str:
            behind = "" if one in special else self._decode([*before, one])
            inside = behind.startswith(start) and one not in special
            return behind[len(start) :] if inside else self._decode([one])

        return [string(one) for one in ids.tolist()]

    @property
    def _has_no_decoder(self) -> bool:
        """Whether a text is the tokens with spaces between them, which belong to no token."""
        known = self.need()
        backend = getattr(known, "backend_tokenizer", None)
        if backend is not None:
            return backend.decoder is None
        join = getattr(known, "convert_tokens_to_string", None)
        return join is not None and join(["x", "##y"]) == "x ##y"

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokenError: it is not, with the tokens that it is.
        """
        ids = self._row(text, None)
        if len(ids) != 1:
            raise TokenError(
                f"{text!r} is {len(ids)} tokens, not one: {self._strings(torch.tensor(ids))}."
                f"{self._with_a_space(text)}"
            )
        return ids[0]

    def _with_a_space(self, text: str) -> str:
        """A hint, where the text is one token if it follows a space."""
        spaced = f" {text}"
        if text.startswith(" ") or len(self._row(spaced, None)) != 1:
            return ""
        return f" {spaced!r}, with a space in front, is one token."

    def to_single_str_token(self, token: int) -> str:
        """The text of one id.

        Raises:
            InputError: it is not an id.
        """
        ids = as_ids(token).flatten()
        if len(ids) != 1:
            raise InputError(f"One id has a text of one token; got {len(ids)} ids.")
        return self._strings(ids)[0]


def as_ids(given: Any) -> Tensor:
    """Whatever holds ids, as a tensor of int64.

    Raises:
        InputError: it holds something else, or rows of different lengths.
    """
    ids = as_tensor(given)
    if ids.dtype == torch.bool or ids.is_complex() or (ids.is_floating_point() and ids.numel()):
        raise InputError(f"Token ids are integers; got {ids.dtype}.")
    return ids.long()


def as_tensor(given: Any) -> Tensor:
    """A tensor, a numpy array, numbers in lists, or a list of tensors, as a tensor.

    Raises:
        InputError: it is none of these, or its rows have different lengths.
    """
    if isinstance(given, Tensor):
        return given
    refuse_message(given)
    try:
        if isinstance(given, Sequence) and given and isinstance(given[0], Tensor):
            return torch.stack(list(given))
        return torch.tensor(given)  # a copy: numpy arrays may be read-only
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{type(given).__name__} cannot be run or read as token ids ({error}). Pass text, a "
            "list of texts, ids [pos] or [batch, pos], or what a tokenizer returns."
        ) from error


def _padded(row: list[int], width: int, fill: int, side: Side) -> list[int]:
    padding = [fill] * (width - len(row))
    return padding + row if side == "left" else row + padding
