"""Text piece by piece while it is generated, from a thread that has the hooks of its caller."""

from collections.abc import Iterator
from contextvars import copy_context
from threading import Event, Thread
from typing import Any, Protocol

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.prompts import Encoded, is_one_text, is_text, plain_input
from lensbridge.inputs.tokens import Tokens


class Generates(Protocol):
    """A model that generates."""

    tokens: Tokens

    def generate(self, input: Any, max_new_tokens: int = 10, **options: Any) -> Any:
        """Continue an input."""


def streamed(
    model: Generates, input: Any, max_new_tokens: int, skip_prompt: bool, options: dict[str, Any]
) -> Iterator[str]:
    """See `model.stream`."""
    rows = _row_count(plain_input(input))
    if rows != 1:
        raise InputError(f"stream() takes one text at a time; this input has {rows} rows.")
    from transformers import TextIteratorStreamer

    streamer: Any = TextIteratorStreamer(
        model.tokens.need(), skip_prompt=skip_prompt, skip_special_tokens=True
    )
    put, failed, unread = streamer.put, list[BaseException](), Event()

    def put_unless_unread(value: Any) -> None:
        if unread.is_set():
            raise _NobodyReads
        put(value)

    def run() -> None:
        try:
            model.generate(input, max_new_tokens, streamer=streamer, verbose=False, **options)
        except BaseException as error:  # raised again where the text is read
            failed.append(error)
            streamer.end()

    streamer.put = put_unless_unread
    thread = Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    return _pieces(streamer, thread, failed, unread)


def _row_count(given: Any) -> int:
    given = given.ids if isinstance(given, Encoded) else given
    if isinstance(given, Tensor):
        return given.shape[0] if given.ndim == 2 else 1
    return len(given) if is_text(given) and not is_one_text(given) else 1


class _NobodyReads(Exception):  # noqa: N818
    """The text is not wanted any more."""


def _pieces(
    streamer: Iterator[str], thread: Thread, failed: list[BaseException], unread: Event
) -> Iterator[str]:
    try:
        yield from streamer
    finally:
        unread.set()
        thread.join()
    if failed:
        raise failed[0]
