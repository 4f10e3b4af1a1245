"""Special tokens: BOS, EOS, padding and separators, which stand for no text."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.inputs.tokens import Tokens
from lensbridge.native.parts import ResolvedModel

Excluded: TypeAlias = bool | Sequence[int]
"""Whether special tokens are excluded; or the ids of those that are."""

_STRUCTURAL = ("bos", "eos", "pad", "sep")


def special_ids(tokens: Tokens, native: ResolvedModel, excluded: Excluded) -> frozenset[int]:
    """The ids of the tokens that are excluded.

    Args:
        tokens: the tokenizer, which says which tokens are special.
        native: the model; the decoder of an encoder-decoder may begin with a token of its own.
        excluded: True for all special tokens, or ids.

    Raises:
        TokenizerMissingError: the model has no tokenizer, and no ids were passed.
    """
    if excluded is False:
        return frozenset()
    if excluded is not True:
        return frozenset(int(one) for one in excluded)
    known = tokens.need()
    named = [known.special_tokens_map.get(f"{role}_token") for role in _STRUCTURAL]
    ids = {int(known.convert_tokens_to_ids(token)) for token in named if token is not None}
    start = native.main.config.to_dict().get("decoder_start_token_id")
    return frozenset(ids if start is None else ids | {start})


def known_special_ids(tokens: Tokens, native: ResolvedModel, excluded: Excluded) -> frozenset[int]:
    """As `special_ids`; for a model without a tokenizer, the ids that its config names."""
    if excluded is not True or tokens.tokenizer is not None:
        return special_ids(tokens, native, excluded)
    config = native.main.config.to_dict()
    named = [config.get(f"{role}_token_id") for role in (*_STRUCTURAL, "decoder_start")]
    ids = [one for given in named for one in (given if isinstance(given, list) else [given])]
    return frozenset(one for one in ids if one is not None)


def is_special(tokens: Tensor, ids: frozenset[int]) -> Tensor:
    """Which tokens are among some ids. Shapes: as `tokens`, bool."""
    return torch.isin(tokens, torch.tensor(sorted(ids), dtype=tokens.dtype, device=tokens.device))
