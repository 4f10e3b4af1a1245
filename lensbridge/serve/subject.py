"""Subject: the model that is served, and prompts and tokens as it reads them."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import AbsentPointError, InputError, TokenError
from lensbridge.model import LensModel
from lensbridge.serve.limits import Limits
from lensbridge.serve.literals import literal
from lensbridge.viz.labels import label_of

_STAND_IN = "model = ...  # the model that the page shows"


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Args:
        given: what lensbridge's functions are passed: the text, or ids.
        ids: its token ids.
        labels: each token as text, with spaces and line breaks made visible.
    """

    given: str | list[int]
    ids: list[int]
    labels: list[str]

    def position(self, asked: int | None) -> int:
        """A position of this prompt; None is the last.

        Raises:
            InputError: the prompt has no such position.
        """
        if asked is None:
            return len(self.ids) - 1
        if not 0 <= asked < len(self.ids):
            raise InputError(
                f"There is no position {asked}: the prompt has {len(self.ids)} tokens, which are "
                f"numbered 0 to {len(self.ids) - 1}."
            )
        return asked


@dataclass(frozen=True, eq=False)
class Subject:
    """The model that is served.

    Args:
        model: the model.
        load: what `lensbridge.load` was passed; None if the model came as an object.
        limits: how much one question may ask for.

    Raises:
        InputError: the model is in training mode.
    """

    model: LensModel
    load: str | None
    limits: Limits

    def __post_init__(self) -> None:
        require_eval(self.model)

    @cached_property
    def has_tokenizer(self) -> bool:
        """Whether prompts are text; otherwise they are token ids."""
        return self.model.tokenizer is not None

    def points(self, short: str) -> dict[int, str]:
        """The point in each layer that has it, by its short name."""
        found = {}
        for layer in range(self.model.cfg.n_layers):
            with suppress(AbsentPointError):
                found[layer] = self.model.vocabulary.canonical((short, layer))
        return found

    def read(self, text: str) -> Prompt:
        """A prompt from what was typed.

        Raises:
            InputError: it is empty, too long, or no ids where the model has no tokenizer.
        """
        given: str | list[int] = text if self.has_tokenizer else _ids_in(text)
        ids = self.model.prepare(given).tokens if given else None
        if ids is None:
            raise InputError("The prompt is empty: type a text.")
        self._check_length(ids.shape[-1])
        row = ids[0].tolist()
        labels = self.labels(row)
        return Prompt(given, row, [labels[one] for one in row])

    def _check_length(self, count: int) -> None:
        if count > self.limits.max_tokens:
            raise InputError(
                f"The prompt has {count} tokens, and this page takes {self.limits.max_tokens}. "
                "Shorten it, or start the page with a larger max_tokens."
            )

    @cached_property
    def _labels(self) -> dict[int, str]:
        return {}

    def label(self, token: int) -> str:
        """A token as text, with spaces and line breaks made visible."""
        return self.labels([token])[token]

    def labels(self, tokens: Iterable[int]) -> dict[int, str]:
        """Several tokens as text."""
        wanted = set(tokens)
        new = sorted(wanted - set(self._labels))
        if new:
            self._labels.update(zip(new, self._texts(new), strict=True))
        return {one: self._labels[one] for one in wanted}

    def _texts(self, tokens: list[int]) -> list[str]:
        if not self.has_tokenizer:
            return [f"id {one}" for one in tokens]
        texts = self.model.to_str_tokens(torch.tensor(tokens))
        pairs = zip(tokens, map(label_of, texts), strict=True)
        return [text or f"(empty token {one})" for one, text in pairs]

    def token(self, token: int) -> dict[str, Any]:
        """A token for the page: its id and its label."""
        return {"id": token, "label": self.label(token)}

    def target(self, asked: int | str | None, logits: Tensor) -> int:
        """The token that a question is about; None is the likeliest one.

        A word may be typed without the space that its token begins with: of the tokens with the
        space and without it the likelier one is taken.

        Args:
            asked: an id, or a text that is one token.
            logits: of the position, `[d_vocab]`.

        Raises:
            TokenError: it is not one token of the vocabulary.
        """
        if asked is None or asked == "":
            return int(logits.argmax())
        meant = self._meant(asked) if isinstance(asked, str) else [asked]
        if not all(0 <= one < len(logits) for one in meant):
            raise TokenError(
                f"There is no token {asked}: ids of this model are 0 to {len(logits) - 1}."
            )
        return max(meant, key=lambda one: float(logits[one]))

    def _meant(self, text: str) -> list[int]:
        """The tokens that a typed text may mean.

        Raises:
            TokenError: it is none.
        """
        if not self.has_tokenizer:
            return _ids_in(text, only=1)
        found = []
        for one in (text, f" {text}"):
            with suppress(TokenError):
                found.append(self.model.to_single_token(one))
        return found or [self.model.to_single_token(text)]

    @property
    def code(self) -> str:
        """The beginning of the Python that a view shows: the import and the model."""
        loaded = (
            _STAND_IN if self.load is None else f"model = lensbridge.load({literal(self.load)})"
        )
        return f"import lensbridge\n\n{loaded}\n"


def require_eval(model: LensModel) -> None:
    """Refuse a model in training mode.

    Raises:
        InputError: it is.
    """
    if any(module.training for module in model.hf_model.modules()):
        raise InputError(
            "The model is in training mode, in which dropout makes every run different. Call "
            "model.eval() first."
        )


def _ids_in(text: str, only: int | None = None) -> list[int]:
    """Ids that were typed, with spaces or commas between them.

    Raises:
        InputError: something else was typed, or another number of them.
    """
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() and len(part) < 10 for part in parts) or (
        only is not None and len(parts) != only
    ):
        raise InputError(
            "This model has no tokenizer, so a prompt is token ids with spaces between them, such "
            "as 15 3 27, and a token is one id. Load it with a tokenizer to type text: "
            "lensbridge.load(model, tokenizer=...)."
        )
    return [int(part) for part in parts]
