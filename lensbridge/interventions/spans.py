"""Spans: the tokens of a prompt that contain a piece of its text."""

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.phrases import DecodedText


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
    prompt = DecodedText(model.tokens, tuple(tokens))
    whole = prompt.text()
    count = whole.count(text)
    if count != 1 or not text.strip():
        raise InputError(
            f"{text!r} occurs {count} times in {whole!r}; it has to occur once. Pass positions."
        )
    found = prompt.positions(text)
    return range(found[0], found[-1] + 1)
