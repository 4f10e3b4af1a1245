"""Spans: the tokens of a prompt that contain a piece of its text."""

from typing import Any

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel


def token_span(model: HookedModel, tokens: list[int], text: str) -> range:
    """The tokens that contain a piece of text.

    Args:
        model: the model with the tokenizer.
        tokens: of the prompt.
        text: a part of the prompt that occurs once.

    Raises:
        InputError: it does not occur, or more than once.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> ids = model.to_tokens("The Eiffel Tower is in the city of")[0].tolist()
        >>> token_span(model, ids, "Eiffel Tower")
        range(2, 4)
    """
    ends, whole = _ends(model, tokens)
    count = whole.count(text)
    if count != 1 or not text:
        raise InputError(
            f"{text!r} occurs {count} times in {whole!r}; it has to occur once. Pass positions."
        )
    start = whole.index(text)
    stop = start + len(text.rstrip())
    start += len(text) - len(text.lstrip())
    first = next(i for i, end in enumerate(ends) if end > start)
    last = next(i for i, end in enumerate(ends) if end >= stop)
    return range(first, last + 1)


def _ends(model: HookedModel, tokens: list[int]) -> tuple[list[int], str]:
    """The number of characters up to the end of each token, and the whole text."""
    decode: Any = model.tokens.need().decode
    texts = [
        str(decode(tokens[: i + 1], clean_up_tokenization_spaces=False)) for i in range(len(tokens))
    ]
    return [len(text) for text in texts], texts[-1]
