"""Text piece by piece while it is generated, told to a client."""

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer


class Pieces(TextStreamer):  # type: ignore[misc]
    """Tells the text of new tokens as soon as it is known.

    Args:
        tokenizer: decodes them.
        skip_prompt: leave the prompt out.
        told: called with each piece.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool, told: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self._told = told

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Tell a piece."""
        self._told(text)
