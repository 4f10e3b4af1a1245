"""What a user passes as an input -> ids or embeddings, a mask, and what else it says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError, TokenError
from lensbridge.inputs.chat import refuse_message, refuse_option
from lensbridge.inputs.keywords import unexpected
from lensbridge.inputs.prompts import Encoded, Side, is_text, plain_input
from lensbridge.inputs.tokens import Tokens, as_ids, as_tensor
from lensbridge.native.kv_cache import SAID, is_cache
from lensbridge.native.parts import ResolvedModel


@dataclass(frozen=True)
class Reading:
    """What an input says.

    Args:
        ids: `[batch, pos]`, or None.
        embeds: `[batch, pos, d_model]`, where there are no ids.
        mask: `[batch, pos]`, or None where nothing is masked.
        prepend_bos: whether the rows begin with BOS; None where the input is no text.
        more: keywords of the native forward.
    """

    ids: Tensor | None = None
    embeds: Tensor | None = None
    mask: Tensor | None = None
    prepend_bos: bool | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """Reads inputs of one model.

    Args:
        native: the model.
        tokens: its tokenizer.
        accepted: keywords that its native forward takes.
        device: where tensors go.
    """

    native: ResolvedModel
    tokens: Tokens
    accepted: frozenset[str]
    device: torch.device

    def check_keywords(self, hf: Mapping[str, Any]) -> None:
        """Refuse keywords that the native forward does not take.

        Raises:
            TypeError: with what to write instead.
        """
        for name in hf:
            if name not in self.accepted:
                raise unexpected(name, type(self.native.core).__name__, self.accepted)

    def read(
        self, given: Any, prepend_bos: bool | None, side: Side | None, prompted: bool | None
    ) -> Reading:
        """Ids or embeddings, mask, whether BOS comes first, and what else the input says.

        Args:
            given: the input.
            prepend_bos: BOS before text; None means the default.
            side: where short texts are padded; None means the default.
            prompted: whether a chat ends where an answer begins; None means the default.

        Raises:
            InputError: empty or of the wrong shape.
            TokenError: ids outside the vocabulary.
        """
        given = plain_input(given)
        if is_text(given) or isinstance(given, Encoded):
            text = self.tokens.encode(given, prepend_bos, side, add_generation_prompt=prompted)
            mask = None if bool(text.mask.all()) else text.mask.to(self.device)
            return Reading(self.ids(text.ids), None, mask, text.prepend_bos)
        refuse_option(prompted)
        if isinstance(given, Mapping):
            return self._parse_mapping(given)
        tensor = as_tensor(given)
        if self.native.main_input != "input_ids" and tensor.is_floating_point():
            return Reading(more={self.native.main_input: tensor.to(self.device)})
        if tensor.is_floating_point() and tensor.numel():
            return Reading(embeds=self._embeds(tensor))
        return Reading(self.ids(as_ids(tensor)))

    def _parse_mapping(self, given: Mapping[str, Any]) -> Reading:
        """A tokenizer's or processor's output: ids or embeddings, mask, and keywords of the native
        forward.
        """
        more = dict(given)
        own = self.native.calling.ids
        if own is not None and own in more and "input_ids" not in more:
            more["input_ids"] = more.pop(own)
        if more.get("inputs_embeds") is not None:
            return self._parse_embeds(more)
        if "input_ids" not in more and self.native.main_input in more:
            return Reading(more=self._tensors(more))
        if "input_ids" not in more:
            refuse_message(more)
            raise InputError(
                f"The input has no 'input_ids'; it has {', '.join(_some(more)) or 'nothing'}."
            )
        ids = self.ids(as_ids(more.pop("input_ids")))
        mask = self._mask_in(more)
        if "token_type_ids" not in self.accepted:
            more.pop("token_type_ids", None)  # which many tokenizers add for every model
        if "labels" in more:
            raise TypeError("'labels' in the input: pass labels=... beside it.")
        return Reading(ids, mask=mask, more=self._tensors(more))

    def _parse_embeds(self, more: dict[str, Any]) -> Reading:
        """A mapping with embeddings in it: those, mask, and keywords of the native forward."""
        if more.pop("input_ids", None) is not None:
            raise TypeError("The input has both input_ids and inputs_embeds: pass one of them.")
        embeds = self._embeds(as_tensor(more.pop("inputs_embeds")))
        mask = self._mask_in(more)
        return Reading(None, embeds, mask, more=self._tensors(more))

    def _mask_in(self, more: dict[str, Any]) -> Tensor | None:
        """The mask, taken out of a mapping; None where nothing is masked."""
        given = more.pop("attention_mask", None)
        mask = None if given is None else self.mask(given)
        return None if mask is None or bool(mask.bool().all()) else mask

    def _tensors(self, more: Mapping[str, Any]) -> dict[str, Any]:
        self.check_keywords({name: value for name, value in more.items() if name not in SAID})
        return {
            name: value if _is_plain(value) else as_tensor(value).to(self.device)
            for name, value in more.items()
        }

    def mask(self, given: Any) -> Tensor:
        """A mask with a row for each example. Shapes: `[batch, pos]`"""
        mask = as_tensor(given).to(self.device)
        return mask.unsqueeze(0) if mask.ndim == 1 else mask

    def _embeds(self, embeds: Tensor) -> Tensor:
        d_model = self.native.sizes.d_model
        if embeds.ndim != 3 or embeds.shape[-1] not in self._widths():
            raise InputError(
                f"A residual or embedding input is [batch, pos, {d_model}] (and ids are integers); "
                f"got {embeds.dtype} of shape {tuple(embeds.shape)}."
            )
        return embeds.to(self.device)

    def _widths(self) -> set[int]:
        """Of the stream, and of embeddings that are projected to it."""
        table = None if self.native.main.embed is None else self.native.main.embed._parameters
        weight = table.get("weight") if table else None
        return {self.native.sizes.d_model, *(weight.shape[-1:] if weight is not None else ())}

    def ids(self, ids: Tensor) -> Tensor:
        """Ids that the model has, with a row for each example.

        Shapes: `[pos]` or `[batch, pos]` -> `[batch, pos]`

        Raises:
            InputError: of another shape, or empty.
            TokenError: outside the vocabulary.
        """
        if ids.ndim not in (1, 2) or ids.numel() == 0:
            raise InputError(f"Token ids are [pos] or [batch, pos]; got shape {tuple(ids.shape)}.")
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= self.native.sizes.d_vocab:
            raise TokenError(
                f"Token ids run from {low} to {high}; this model's vocabulary is 0 to "
                f"{self.native.sizes.d_vocab - 1}."
            )
        return ids.to(self.device)


def _some(names: Iterable[Any], limit: int = 8) -> list[str]:
    told = [str(name) for name in names]
    return told if len(told) <= limit else [*told[:limit], f"{len(told) - limit} more"]


def _is_plain(value: Any) -> bool:
    """Whether a value is no array: a flag, or a key/value cache."""
    return value is None or isinstance(value, bool | str) or is_cache(value)
