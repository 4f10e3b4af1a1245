"""Messages of a chat as an input: recognized here, and written out by the tokenizer's template."""

from collections.abc import Mapping, Sequence
from typing import Any

from lensbridge.errors import InputError


def is_message(given: Any) -> bool:
    """Whether something is one message, such as `{"role": "user", "content": "Hello"}`."""
    return isinstance(given, Mapping) and "role" in given


def is_chat(given: Any) -> bool:
    """Whether an input is the messages of one chat.

    Example:
        >>> is_chat([{"role": "user", "content": "Hello"}]), is_chat(["Hello"]), is_chat([])
        (True, False, False)
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return several and bool(given) and is_message(given[0])


def are_chats(given: Any) -> bool:
    """Whether an input is a list of chats, each with its messages."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return several and bool(given) and is_chat(given[0])


def refuse_message(given: Any) -> None:
    """Refuse a message that is not in a list.

    Raises:
        InputError: it is one.
    """
    if is_message(given):
        raise InputError(
            "The input is one message of a chat. A chat is a list of messages, so put it into a "
            "list: [message]. The list goes through the tokenizer's chat template."
        )


def refuse_option(add_generation_prompt: bool | None) -> None:
    """Refuse an option of chats beside an input that is none.

    Raises:
        InputError: it was passed.
    """
    if add_generation_prompt is not None:
        raise InputError(
            "add_generation_prompt is for messages of a chat, [{'role': ..., 'content': ...}], and "
            "this input has none. Leave it out."
        )


def written(tokenizer: Any, messages: Any, add_generation_prompt: bool | None = None) -> str:
    """The text of a chat, as the tokenizer's template writes it.

    Args:
        tokenizer: whose template.
        messages: of one chat.
        add_generation_prompt: whether the text ends where the assistant's answer begins; None: it
            does unless the last message is the assistant's own.

    Raises:
        InputError: there is no template, or it does not take these messages.
    """
    if not is_chat(messages) or not all(map(is_message, messages)):
        raise InputError(
            f"A chat is a list of messages, each with a role and a content; got {messages!r:.80}. "
            "Several chats are a list of such lists."
        )
    if getattr(tokenizer, "chat_template", "") is None:  # some have a template without saying so
        raise InputError(
            "The input is messages of a chat, and the tokenizer has no chat template, as that of a "
            "model that was not trained on chats. Set model.tokenizer.chat_template, or make a "
            "text of them yourself."
        )
    if add_generation_prompt is None:
        add_generation_prompt = messages[-1]["role"] != "assistant"
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template may raise anything
        raise InputError(
            f"The tokenizer's chat template does not take these messages: {error} (roles: "
            f"{', '.join(str(one['role']) for one in messages)})."
        ) from error
    return text
