"""Methods of `LensModel` for text and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lensbridge.inputs.phrases import positions_of
from lensbridge.inputs.prepare import Preparer
from lensbridge.inputs.prompts import Prompts, Side
from lensbridge.inputs.token_position import position_of
from lensbridge.inputs.tokens import Tokens
from lensbridge.tensors.positions import Count


class TextMethods:
    """Tokenization with the model's rules for BOS and padding (`lensbridge.tokens`)."""

    tokens: Tokens
    preparer: Preparer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself, or None."""
        return self.tokens.tokenizer

    @overload
    def to_tokens(
        self,
        input: Prompts,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = False,
        return_mask: Literal[False] = False,
        add_generation_prompt: bool | None = None,
    ) -> Tensor: ...
    @overload
    def to_tokens(
        self,
        input: Prompts,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = False,
        *,
        return_mask: Literal[True],
        add_generation_prompt: bool | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    def to_tokens(
        self,
        input: Prompts,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = False,
        return_mask: bool = False,
        add_generation_prompt: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Token ids of one text or several.

        Args:
            input: text, a list of texts, the messages of a chat, a list of chats, or an object
                that holds prompts, such as an `IOIDataset`; several are padded to one width.
            prepend_bos: BOS first; None means the default (True). Never two.
            padding_side: None means right, where padding cannot move a token.
            move_to_device: put them where the model is.
            truncate: cut what is longer than the context, from the right.
            return_mask: also give the attention mask, which a left-padded batch needs.
            add_generation_prompt: whether a chat ends where the assistant's answer begins; None: it
                does unless the last message is the assistant's own.

        Shapes: `[batch, pos]`, one row for one text; with `return_mask` a pair of them.

        Raises:
            TokenizerMissingError: the model has no tokenizer.
        """
        limit = self.preparer.native.sizes.n_ctx if truncate else None
        encoded = self.tokens.encode(input, prepend_bos, padding_side, limit, add_generation_prompt)
        device = self.preparer.device if move_to_device else torch.device("cpu")
        ids = encoded.ids.to(device)
        return (ids, encoded.mask.to(device)) if return_mask else ids

    def to_string(self, tokens: Any) -> str | list[str]:
        """Text of ids: one string for one row, a list for several."""
        return self.tokens.to_string(tokens)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> list[str] | list[list[str]]:
        """Each token as text, of a text, a list of texts, chats, prompts, or ids."""
        return self.tokens.to_str_tokens(input, prepend_bos, padding_side)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokenError: it is several, and which.
        """
        return self.tokens.to_single_token(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        return self.tokens.to_single_str_token(int_token)

    def get_token_position(
        self,
        single_token: str | int | Tensor,
        input: Any,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        count: Count = "tokens",
    ) -> int:
        """Where a token stands in a text or in one row of ids.

        The position counts the tokens of the text from 0, BOS included, as `positions` and
        `pos_slice` do.

        Args:
            single_token: its text or its id.
            input: a text, a row of ids, or a mapping with `input_ids` and `attention_mask`.
            mode: which one, if it occurs several times.
            prepend_bos: BOS before the text; None means the default.
            count: "columns" counts the columns of a padded row instead.

        Raises:
            TokenError: it does not occur.
            InputError: several rows, or ids that begin with padding and have no mask.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> model.get_token_position(" Tower", "The Eiffel Tower is in the city of")
            3
        """
        return position_of(self.tokens, single_token, input, mode, prepend_bos, count)

    def positions_of(
        self,
        phrase: str | Sequence[str],
        input: Any,
        occurrence: int | None = 0,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        count: Count = "tokens",
    ) -> Any:
        """The positions of the tokens that contain a phrase.

        They count the tokens of each text from 0, BOS included, as `positions` of interventions and
        `pos_slice` do. A phrase may begin or end inside a token, with or without a space before it.

        Args:
            phrase: a part of the text, or one for each example.
            input: a text or a chat, several of these, ids, or a mapping with `input_ids` and
                `attention_mask`.
            occurrence: which one, from 0; negative ones count from the last, None means all.
            prepend_bos: BOS before text; None means the default.
            padding_side: where texts are padded, for columns.
            count: "columns" counts the columns of the padded batch instead.

        Returns:
            A list of positions, or such a list for each example if there are several: what
            `positions` takes.

        Raises:
            TokenError: a text does not have the phrase, or not so often; with its tokens.
            TokenizerMissingError: the model has no tokenizer.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> model.positions_of("Eiffel Tower", "The Eiffel Tower is in the city of")
            [2, 3]
            >>> prompts = ["The Galata Tower is in", "The city of the Galata Tower"]
            >>> model.positions_of("Tower", prompts)
            [[3], [6]]
        """
        return positions_of(
            self.tokens, phrase, input, occurrence, prepend_bos, padding_side, count
        )
