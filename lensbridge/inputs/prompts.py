"""Objects that hold prompts, such as data sets, as inputs of a model.

An object is one if it has a method `as_input`. Everywhere a text is taken, such an object is taken
too, and a list of objects that each hold one text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.chat import are_chats, is_chat

Side = Literal["left", "right"]
"""Where short rows of a batch are padded."""


@dataclass(frozen=True)
class Encoded:
    """Rows of token ids as the model is given them.

    Args:
        ids: `[batch, pos]`.
        mask: `[batch, pos]`, 1 for tokens, 0 for padding.
        prepend_bos: whether the rows begin with BOS; None if they were not made from text.
    """

    ids: Tensor
    mask: Tensor
    prepend_bos: bool | None

    @property
    def is_text(self) -> bool:
        """Whether the rows were made from text."""
        return self.prepend_bos is not None

    def padded(self, side: Side) -> "Encoded":
        """The same rows with their padding on this side."""
        order = self.mask.sort(dim=-1, stable=True, descending=side == "right").indices
        return replace(self, ids=self.ids.gather(1, order), mask=self.mask.gather(1, order))

    def cut(self, limit: int | None) -> "Encoded":
        """The first `limit` tokens of each row; None: all. The padding is on the right."""
        rows = self.padded("right")
        return replace(rows, ids=rows.ids[:, :limit], mask=rows.mask[:, :limit])

    def require_bos(self, prepend_bos: bool | None) -> None:
        """Refuse another choice of BOS than the rows were made with.

        Raises:
            InputError: `prepend_bos` says otherwise.
        """
        if prepend_bos is None or prepend_bos == bool(self.prepend_bos) or not self.is_text:
            return
        what = "begin" if self.prepend_bos else "do not begin"
        raise InputError(
            f"prepend_bos={prepend_bos}, but these prompts are rows of ids already, which {what} "
            f"with BOS. Leave prepend_bos out, or make the data set with prepend_bos={prepend_bos}."
        )


@runtime_checkable
class PromptSource(Protocol):
    """An object that holds one prompt or several.

    Example:
        >>> class Question:
        ...     def as_input(self):
        ...         return "The Eiffel Tower is in the city of"
        >>> isinstance(Question(), PromptSource)
        True
    """

    def as_input(self) -> "str | list[str] | Encoded":
        """The text, the texts or the rows of ids that a model is to run."""


Message: TypeAlias = Mapping[str, Any]
"""One message of a chat: `{"role": "user", "content": "Hello"}`."""

Chat: TypeAlias = Sequence[Message]
"""The messages of one chat. Its text is what the tokenizer's chat template makes of it."""

Prompts: TypeAlias = (
    "str | Sequence[str] | Chat | Sequence[Chat] | PromptSource | Sequence[PromptSource]"
)
"""One text or chat or several, or objects that hold them."""


def plain_input(given: Any) -> Any:
    """An input without prompt objects: what an object holds in its place, and all else as it is.

    Raises:
        InputError: an object in a list that does not hold one text.

    Example:
        >>> from lensbridge.demo.text import eiffel_tower
        >>> plain_input(eiffel_tower())
        'The Eiffel Tower is in the city of'
        >>> plain_input([eiffel_tower(), "Paris"])
        ['The Eiffel Tower is in the city of', 'Paris']
    """
    if isinstance(given, PromptSource):
        return given.as_input()
    several = isinstance(given, list | tuple)
    if not several or not any(isinstance(one, PromptSource) for one in given):
        return given
    return [_text(one) for one in given]


def _text(given: Any) -> str:
    found = plain_input(given)
    if not isinstance(found, str):
        raise InputError(
            f"A list of prompts has one text for each item, and a {type(given).__name__} is among "
            "them. Pass it alone; it holds a batch."
        )
    return found


def is_text(given: Any) -> bool:
    """Whether an input is a text, a list of texts, chats, or prompts that were made from text."""
    plain = plain_input(given)
    if isinstance(plain, str) or is_chat(plain) or are_chats(plain):
        return True
    if isinstance(plain, Encoded):
        return plain.is_text
    return isinstance(plain, Sequence) and bool(plain) and isinstance(plain[0], str)


def is_one_text(given: Any) -> bool:
    """Whether an input is a single text or the messages of a single chat, not a list of them."""
    plain = plain_input(given)
    return isinstance(plain, str) or is_chat(plain)
