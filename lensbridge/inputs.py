"""What a user passes -> what the native forward is called with, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import ContextLengthError, InputError, TokenError, suggest
from lensbridge.parts import Native
from lensbridge.tokens import Side, Tokens
from lensbridge.weights import execution_device


@dataclass(frozen=True)
class Prepared:
    """Input that is ready to run.

    Args:
        tokens: `[batch, pos]` ids, or None where a residual or embeddings were passed.
        embeds: `[batch, pos, d_model]`, where no ids were.
        mask: `[batch, past + pos]`, or None where nothing is masked.
        prepend_bos: whether the rows begin with BOS; None where the input was not text.
        kwargs: for the native forward, masks and positions among them.
    """

    tokens: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None
    prepend_bos: bool | None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparer:
    """Turns inputs of one model into calls of its native forward.

    Args:
        native: the model.
        tokens: its tokenizer.
        accepted: keywords that its native forward takes.
    """

    native: Native
    tokens: Tokens
    accepted: frozenset[str]

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        embed = self.native.embed
        return execution_device(embed) or next(embed.parameters()).device

    def prepare(
        self,
        given: Any,
        *,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **hf: Any,
    ) -> Prepared:
        """Tokenize, check and complete an input.

        Raises:
            TypeError: a keyword that the model does not take.
            InputError: empty or of the wrong shape.
            TokenError: ids outside the vocabulary.
            ContextLengthError: more positions than the model has.
        """
        self._check_keywords(hf)
        ids, embeds, mask, bos = self._parse(given, prepend_bos, padding_side)
        mask = mask if attention_mask is None else torch.as_tensor(attention_mask).to(self.device)
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        whole = ids if ids is not None else embeds
        assert whole is not None
        self._check_length(past, whole.shape[1])
        self._check_mask(mask, whole, past)
        if (
            mask is not None
            and mask.ndim == 2
            and bool(mask.bool().all())
            and attention_mask is None
        ):
            mask = None
        if position_ids is None:
            position_ids = self._positions(mask, whole.shape[1])
        found = {
            "attention_mask": mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
        }
        kwargs = {**{k: v for k, v in found.items() if v is not None}, **hf}
        return Prepared(ids, embeds, mask, bos, kwargs)

    def _check_keywords(self, hf: Mapping[str, Any]) -> None:
        for name in hf:
            if name not in self.accepted:
                raise TypeError(
                    f"unexpected keyword {name!r} for {type(self.native.core).__name__}."
                    f"{suggest(name, self.accepted)}"
                )

    def _parse(
        self, given: Any, prepend_bos: bool | None, side: Side | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool | None]:
        if isinstance(given, str) or (
            isinstance(given, Sequence) and given and isinstance(given[0], str)
        ):
            text = self.tokens.encode(given, prepend_bos, side)
            ids = self._checked(text.ids)
            return ids, None, text.mask.to(self.device), text.prepend_bos
        if isinstance(given, Mapping):
            mask = given.get("attention_mask")
            ids = self._checked(torch.as_tensor(given["input_ids"]))
            return ids, None, None if mask is None else mask.to(self.device), None
        tensor = torch.as_tensor(given)
        if tensor.is_floating_point() and tensor.numel():
            return None, self._checked_embeds(tensor), None, None
        return self._checked(tensor), None, None, None

    def _checked_embeds(self, embeds: Tensor) -> Tensor:
        d_model = self.native.sizes.d_model
        if embeds.ndim != 3 or embeds.shape[-1] != d_model:
            raise InputError(
                f"A residual or embedding input is [batch, pos, {d_model}]; "
                f"got shape {tuple(embeds.shape)}."
            )
        return embeds.to(self.device)

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim not in (1, 2) or ids.numel() == 0:
            raise InputError(f"Token ids are [pos] or [batch, pos]; got shape {tuple(ids.shape)}.")
        if ids.dtype == torch.bool or ids.is_floating_point():
            raise InputError(f"Token ids are integers; got {ids.dtype}.")
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= self.native.sizes.d_vocab:
            raise TokenError(
                f"Token ids run from {low} to {high}; this model's vocabulary is 0 to "
                f"{self.native.sizes.d_vocab - 1}."
            )
        return ids.to(self.device)

    def _check_length(self, past: int, count: int) -> None:
        limit = self.native.sizes.n_ctx
        if past + count > limit:
            raise ContextLengthError(
                f"The input has {past + count} positions; the context is {limit}. Shorten it, or "
                "raise the limit in hf_model.config if the model extrapolates, and load again."
            )

    def _check_mask(self, mask: Tensor | None, whole: Tensor, past: int) -> None:
        if mask is None or mask.ndim == 4:
            return
        wanted = (whole.shape[0], past + whole.shape[1])
        if tuple(mask.shape) != wanted:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}; the input needs {wanted}."
            )

    def _positions(self, mask: Tensor | None, count: int) -> Tensor | None:
        """Positions counted from each row's first token, where the model has absolute ones."""
        if self.native.pos_embed is None or mask is None or mask.ndim != 2:
            return None
        counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
        plain = torch.arange(mask.shape[1], device=mask.device)
        if bool(((counted == plain) | (mask == 0)).all()):
            return None
        return counted[:, -count:]
