"""Where a token stands in a text."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.errors import InputError, TokenError
from lensbridge.inputs.prompts import Encoded, PromptSource, is_one_text
from lensbridge.inputs.tokens import Tokens, as_ids, as_tensor
from lensbridge.tensors.positions import Count, check_count


def position_of(
    tokens: Tokens,
    token: str | int | Tensor,
    given: Any,
    mode: Literal["first", "last"] = "first",
    prepend_bos: bool | None = None,
    count: Count = "tokens",
) -> int:
    """Where a token stands in a text or in one row of ids.

    Args:
        tokens: the tokenizer.
        token: its text or its id.
        given: a text, a row of ids, or a mapping with `input_ids` and `attention_mask`.
        mode: which one, if it occurs several times.
        prepend_bos: BOS before the text; None means the default.
        count: "tokens" counts the tokens of the text; "columns" counts the padding too.

    Raises:
        TokenError: it does not occur, or is not one token.
        InputError: several rows, ids that begin with padding and have no mask, or a mode that there
            is not.
    """
    check_count(count)
    if mode not in ("first", "last"):
        raise InputError(f"mode is 'first' or 'last', not {mode!r}.")
    wanted = tokens.to_single_token(token) if isinstance(token, str) else int(token)
    ids, mask = _row(tokens, given, prepend_bos)
    if mask is None:
        if count == "tokens":
            _refuse_padding(tokens, ids, prepend_bos)
        mask = torch.ones_like(ids)
    real = mask.bool()
    found = ((ids == wanted) & real).nonzero().flatten().tolist()
    if not found:
        raise TokenError(f"The token {token!r} does not occur in the input.")
    column = int(found[0] if mode == "first" else found[-1])
    return column if count == "columns" else int(real[:column].sum())


def _row(tokens: Tokens, given: Any, prepend_bos: bool | None) -> tuple[Tensor, Tensor | None]:
    """The ids of an input and their mask, if it has one. Shapes: `[pos]`, `[pos]`"""
    mask = None
    if isinstance(given, PromptSource) or is_one_text(given):
        rows: Encoded = tokens.encode(given, prepend_bos)
        ids, mask = rows.ids, rows.mask
    elif isinstance(given, Mapping):
        if "input_ids" not in given:
            raise InputError(f"A mapping needs input_ids; this one has {', '.join(given)}.")
        ids, mask = as_ids(given["input_ids"]), given.get("attention_mask")
    else:
        ids = as_ids(given)
    if ids.ndim == 2 and ids.shape[0] > 1:
        raise InputError(f"One row of tokens is needed, not {ids.shape[0]}.")
    ids, mask = ids.reshape(-1), None if mask is None else as_tensor(mask).reshape(-1)
    if mask is not None and mask.shape != ids.shape:
        raise InputError(f"There are {len(ids)} ids, and attention_mask has {len(mask)} entries.")
    return ids, mask if mask is None else mask.to(ids.device)


def _refuse_padding(tokens: Tokens, ids: Tensor, prepend_bos: bool | None) -> None:
    """Refuse ids that begin with padding: how much of it there is, only a mask can tell.

    Raises:
        InputError: with how to pass the mask.
    """
    if tokens.tokenizer is None:
        return
    pad = tokens.pad_token_id
    other = (ids != pad).nonzero().flatten().tolist()
    before = other[0] if other else len(ids)
    begins = tokens.default_prepend_bos if prepend_bos is None else prepend_bos
    first = int(begins and pad == tokens.special("bos"))  # BOS itself may be what fills short rows
    if before > first:
        raise InputError(
            f"The ids begin with {before} times {pad}, the id of padding, so it is not clear where "
            "the text begins. Pass {'input_ids': ids, 'attention_mask': mask}, the text, or its "
            "ids without padding; or count='columns' for columns of the padded row."
        )
