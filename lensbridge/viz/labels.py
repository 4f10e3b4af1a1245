"""Labels of axes: how they are written, and how many of them fit."""

from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width

from lensbridge.viz.markup import visible

FONT = 11.0  # size of labels in pixels
LETTER = 6.6  # advance of one letter, on the generous side
LINE = 14.0  # distance of two lines


def label_of(entry: Any) -> str:
    """An entry of an axis as text. Spaces at the ends of a token and line breaks are made visible.

    Example:
        >>> label_of(" the"), label_of("head 3"), label_of(5), label_of("a\\n")
        ('·the', 'head 3', '5', 'a↵')
    """
    text = str(entry)
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    right = len(text) - left - len(inner)
    spaced = " ".join(visible(part) for part in inner.split(" "))
    return "·" * left + spaced + "·" * right


def width(text: str) -> float:
    """About how wide a text is drawn, in pixels.

    Example:
        >>> width("abc") < width("abcd"), width("") == 0
        (True, True)
    """
    return sum(FONT if east_asian_width(sign) in "WF" else LETTER for sign in text)


def widest(texts: Sequence[str]) -> float:
    """The width of the widest text; 0 if there is none."""
    return max(map(width, texts), default=0.0)


def shortened(text: str, room: float) -> str:
    """A text that fits into a number of pixels, with an ellipsis where it was cut.

    Example:
        >>> shortened("a very long label", 60)
        'a very l…'
    """
    while width(text) > room and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    return text


def step(entries: int, room: float, needed: float) -> int:
    """Label every n-th entry: the smallest round n at which labels have the room that they need.

    Example:
        >>> step(10, 400, 14), step(200, 400, 14)
        (1, 10)
    """
    each = room / max(1, entries)
    return next((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n * each >= needed), entries)
