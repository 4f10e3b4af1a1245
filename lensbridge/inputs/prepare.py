"""What a user passes -> what the native forward is called with, checked before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import ContextLengthError, InputError
from lensbridge.inputs.prompts import Side
from lensbridge.inputs.reading import Reader, Reading
from lensbridge.inputs.tokens import Tokens, as_tensor
from lensbridge.native.holding import execution_device
from lensbridge.native.kv_cache import SAID, cache_in, columns_in, name_of_cache
from lensbridge.native.parts import ResolvedModel, StackPart


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

    @property
    def cache(self) -> Any:
        """The key/value cache that the input continues, or None."""
        return cache_in(self.kwargs)


@dataclass(frozen=True)
class Preparer:
    """Turns inputs of one model into calls of its native forward.

    Args:
        native: the model.
        tokens: its tokenizer.
        accepted: keywords that its native forward takes.
    """

    native: ResolvedModel
    tokens: Tokens
    accepted: frozenset[str]

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        places = [self.native.main.embed or self.native.core, self.native.core]
        found = execution_device(places[0])
        if found is not None:
            return found
        return next(held for module in places for held in module.parameters()).device

    def prepare(
        self,
        given: Any,
        *,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        add_generation_prompt: bool | None = None,
        **hf: Any,
    ) -> Prepared:
        """Tokenize, check and complete an input.

        Args:
            given: as in `HookedModel.forward`; None where `inputs_embeds` is passed.
            prepend_bos: as there, like all others.
            padding_side: where short texts are padded.
            attention_mask: 1 for tokens, 0 for padding.
            position_ids: of the tokens.
            past_key_values: a key/value cache to continue.
            inputs_embeds: embeddings `[batch, pos, d_model]` in the place of an input.
            add_generation_prompt: for chats, as in `Tokens.encode`.
            hf: for the native forward.

        Raises:
            TypeError: a keyword that the model does not take.
            InputError: empty or of the wrong shape, or the model reads several rows as one input.
            TokenError: ids outside the vocabulary.
            ContextLengthError: more positions than the model has.
        """
        _refuse_choices(self.native.core)
        past_key_values = _one_cache(past_key_values, hf)
        _check_returns(hf)
        reader = Reader(self.native, self.tokens, self.accepted, self.device)
        reader.check_keywords(hf)
        given = _one_input(given, inputs_embeds)
        read = reader.read(given, prepend_bos, padding_side, add_generation_prompt)
        _check_twice({**hf, "position_ids": position_ids}, read.more)
        past_key_values = _one_cache(past_key_values, read.more)
        mask = read.mask if attention_mask is None else reader.mask(attention_mask)
        found = {
            "attention_mask": mask,
            "position_ids": self._places(read, mask, past_key_values),
            **self._named(past_key_values),
            **read.more,
        }
        if position_ids is not None:
            found["position_ids"] = as_tensor(position_ids).to(self.device)
        if self.native.calling.is_plain:
            found = self._taken(found)
        kwargs = {**{k: v for k, v in found.items() if v is not None}, **self._here(hf)}
        self._check_decoder(reader, kwargs)
        return Prepared(read.ids, read.embeds, mask, read.prepend_bos, kwargs)

    def _places(self, read: Reading, mask: Tensor | None, cache: Any) -> Tensor | None:
        """Positions to say, once the lengths of an input and of its mask are right."""
        whole = read.ids if read.ids is not None else read.embeds
        if whole is None:
            return None
        continues = cache is not None and not self.native.is_encoder_decoder
        past = columns_in(cache) if continues else 0
        if past is not None:  # a recurrent state does not say
            self._check_length(past, whole.shape[1], self._reads_input.sizes.n_ctx)
            self._check_mask(mask, whole, past)
        return self._positions(mask, whole.shape[1])

    def _taken(self, found: dict[str, Any]) -> dict[str, Any]:
        """Masks and positions for a plain module, whose forward may have no argument for them.

        Raises:
            InputError: it has none, and the input needs one.
        """
        mask = found["attention_mask"]
        if mask is not None and "attention_mask" not in self.accepted and bool(mask.bool().all()):
            found = {**found, "attention_mask": None}
        for name in ("attention_mask", "position_ids"):
            if found[name] is not None and name not in self.accepted:
                raise InputError(
                    f"The forward of {type(self.native.core).__name__} has no argument {name}, so "
                    "texts of different lengths cannot be padded into one batch. Run them one by "
                    "one, or cut them to one length."
                )
        return found

    def _named(self, cache: Any) -> dict[str, Any]:
        """The cache under the name that the native forward has for it."""
        if cache is None:
            return {}
        name = name_of_cache(self.accepted)
        if name is None:
            raise TypeError(
                f"{type(self.native.core).__name__} takes no key/value cache: leave "
                "past_key_values out."
            )
        return {name: cache}

    def _here(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of the native forward, with tensors on the device of the ids."""
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in hf.items()
        }

    @property
    def _reads_input(self) -> StackPart:
        """The stack that reads the input."""
        apart = self.native.is_encoder_decoder and self.native.towers
        return self.native.towers[0] if apart else self.native.main

    def _check_decoder(self, reader: Reader, given: Mapping[str, Any]) -> None:
        """Ids for the decoder are held to the same limits as the input."""
        ids = given.get("decoder_input_ids")
        if isinstance(ids, Tensor) and self.native.is_encoder_decoder:
            reader.ids(ids)
            cached = given.get("past_key_values") is not None
            self._check_length(0, ids.shape[-1], None if cached else self.native.sizes.n_ctx)

    def _check_length(self, past: int, count: int, limit: int | None) -> None:
        if limit is not None and past + count > limit:
            raise ContextLengthError(
                f"The input has {past + count} positions; the context is {limit}. Shorten it, or "
                "raise the limit in hf_model.config if the model extrapolates, and load again."
            )

    def _check_mask(self, mask: Tensor | None, whole: Tensor, past: int) -> None:
        if mask is None or mask.ndim == 4 or self.native.is_encoder_decoder:
            return
        wanted = (whole.shape[0], past + whole.shape[1])
        if tuple(mask.shape) != wanted:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}; the input needs {wanted}."
            )

    def _positions(self, mask: Tensor | None, count: int) -> Tensor | None:
        """Positions counted from each row's first token, where the model has absolute ones."""
        if not self.native.main.takes_positions or mask is None or mask.ndim != 2:
            return None
        if "position_ids" not in self.accepted:
            return None
        counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
        plain = torch.arange(mask.shape[1], device=mask.device)
        if bool(((counted == plain) | (mask == 0)).all()):
            return None
        return counted[:, -count:]


def _refuse_choices(core: object) -> None:
    """Refuse a model whose input has an axis of choices.

    Raises:
        InputError: it has one.
    """
    name = type(core).__name__
    if name.endswith("ForMultipleChoice"):
        raise InputError(
            f"{name} reads all choices of a question as one input, [batch, choice, pos], and "
            "points have no axis for them. Load its encoder, lensbridge.load(hf_model.base_model), "
            "and run each choice as a row."
        )


def _one_input(given: Any, embeds: Tensor | None) -> Any:
    """The input, whether it was passed first or as `inputs_embeds=`.

    Raises:
        TypeError: both were passed.
        InputError: neither was.
    """
    if given is not None and embeds is not None:
        raise TypeError("There is an input and inputs_embeds beside it: pass one of them.")
    if given is None and embeds is None:
        raise InputError(
            "There is no input: NoneType cannot be run. Pass text, chat messages, ids [pos] or "
            "[batch, pos], what a tokenizer returns, or inputs_embeds=[batch, pos, d_model]."
        )
    return given if embeds is None else {"inputs_embeds": embeds}


def _one_cache(first: Any, named: dict[str, Any]) -> Any:
    """The cache that was passed, under whichever name; it is taken out of `named`.

    Raises:
        TypeError: two were.
    """
    given = [first, *(named.pop(name, None) for name in SAID)]
    caches = [one for one in given if one is not None]
    if len(caches) > 1:
        raise TypeError("Two key/value caches were passed: pass one, as past_key_values=....")
    return caches[0] if caches else None


def _check_twice(given: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    for name in more:
        if given.get(name) is not None:
            raise TypeError(f"{name!r} is in the input and beside it: pass it once.")


def _check_returns(hf: dict[str, Any]) -> None:
    if hf.pop("return_dict", True) is False:
        raise TypeError(
            "return_dict=False gives a tuple, and outputs are read by their names here. Leave "
            "it out, or call model.hf_model itself."
        )
