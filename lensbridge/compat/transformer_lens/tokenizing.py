"""The tokenizer of a model, a private copy of the user's, and functions of it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.names_of_models import get_official_model_name
from lensbridge.errors import LoadError, TokenizerMissingError
from lensbridge.loading import demo_folder
from lensbridge.loading.tokenizer import named_tokenizer

_FROM_WHERE = ("token", "trust_remote_code", "cache_dir", "force_download", "local_files_only")


@dataclass(frozen=True)
class Tokenizers:
    """Finds the tokenizer when text is first used.

    Args:
        name: the name of the model.
        given: a tokenizer, or the name of one.
        options: the options that the model was loaded with.
        own: finds the model's own tokenizer.
    """

    name: str
    given: Any
    options: dict[str, Any]
    own: Callable[[], Any]

    def find(self) -> Any:
        """A copy of the tokenizer; EOS is used for BOS or padding if these have no token.

        Raises:
            TokenizerMissingError: there is none.
        """
        return completed(self._found())

    def _found(self) -> Any:
        if self.given is not None and not isinstance(self.given, str):
            return self.given
        if isinstance(self.given, str):
            return self._named(self.given)
        try:
            return self.own()
        except TokenizerMissingError as missing:
            try:
                return self._named(self.name)
            except LoadError as error:
                raise TokenizerMissingError(f"{missing} {error}") from error

    def _named(self, name: str) -> Any:
        options = {key: self.options[key] for key in _FROM_WHERE if key in self.options}
        return named_tokenizer(demo_folder() if name == "demo" else name, options)


def tokenizer_of(cfg: HookedTransformerConfig, tokenizer: Any) -> Any:
    """The tokenizer of a new model: what was passed, or else the one that the config names.

    Raises:
        LoadError: there is no tokenizer of that name.
    """
    if tokenizer is not None or not cfg.tokenizer_name:
        return tokenizer
    name, options = cfg.tokenizer_name, {"trust_remote_code": cfg.trust_remote_code}
    official = "demo" if name == "demo" else get_official_model_name(name)
    return named_tokenizer(demo_folder() if official == "demo" else official, options)


def completed(tokenizer: Any) -> Any:
    """A copy in which EOS is used for padding and BOS if these have no token."""
    own = deepcopy(tokenizer)
    known = own.special_tokens_map
    if "eos_token" in known:
        for role in ("pad_token", "bos_token"):
            if role not in known:
                setattr(own, role, own.eos_token)
    return own


def get_attention_mask(
    tokenizer: Any, tokens: Tensor, prepend_bos: bool, padding_side: str | None = None
) -> Tensor:
    """The mask of tokens: 1 for tokens, 0 for padding at the padded side.

    Args:
        tokenizer: the tokenizer, for the padding token and side.
        tokens: `[batch, pos]`
        prepend_bos: whether rows begin with BOS, which may be the padding token too.
        padding_side: used instead of the tokenizer's.

    Shapes: `[batch, pos]`
    """
    mask = torch.ones_like(tokens)
    pad = tokenizer.pad_token_id
    if pad is None:
        return mask
    side = padding_side or tokenizer.padding_side
    real = (tokens != pad).int()
    if side == "right":
        mask = real.flip(-1).cummax(-1).values.flip(-1).to(mask)
        if prepend_bos:
            mask[:, 0] |= (tokens[:, 0] == tokenizer.bos_token_id).to(mask)
        return mask
    mask = real.cummax(-1).values.to(mask)
    if prepend_bos and tokenizer.bos_token_id == pad:
        first = (mask == 0).sum(-1) - 1
        rows = (first >= 0).nonzero().flatten()
        mask[rows, first[rows]] = 1
    return mask


def get_tokenizer_with_bos(tokenizer: Any) -> Any:
    """A tokenizer that adds BOS itself: the one passed, or another from the same files.

    Raises:
        LoadError: its files are not on this machine.
    """
    if tokenizer.init_kwargs.get("add_bos_token", False):
        return tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer.name_or_path, add_bos_token=True)


def get_input_with_manually_prepended_bos(
    bos_token: str | None, input: str | list[str]
) -> str | list[str]:
    """Text with the BOS token in front."""
    start = bos_token or ""
    return start + input if isinstance(input, str) else [start + one for one in input]


def get_tokens_with_bos_removed(
    tokenizer: Any, tokens: Tensor, padding_side: str | None = None
) -> Tensor:
    """Rows without their BOS, which comes after any padding on the left.

    Shapes: `[batch, pos]` -> `[batch, pos - 1]`
    """
    if (padding_side or tokenizer.padding_side) == "right":
        return tokens[:, 1:]
    mask = get_attention_mask(tokenizer, tokens, prepend_bos=True, padding_side="left")
    first = mask.argmax(-1)
    keep = torch.arange(tokens.shape[-1], device=tokens.device) != first[:, None]
    return tokens[keep].view(tokens.shape[0], -1)
