"""A tokenizer for tools that want one with every model: the demo model's, which is bundled."""

from functools import cache
from typing import Any

import lensbridge


@cache
def demo_tokenizer() -> Any:
    """The demo model's tokenizer, read from its files."""
    return lensbridge.load("demo").tokenizer
