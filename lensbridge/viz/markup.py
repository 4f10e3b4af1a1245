"""Text and markup are separate types: text of users and tokenizers is escaped exactly once."""

from html import escape
from typing import NewType

Html = NewType("Html", str)
"""Markup that is safe to insert. Made by this package's functions, never from outside text."""

_INVISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


def plain(text: str) -> Html:
    """Text as markup.

    Example:
        >>> plain("a < b")
        'a &lt; b'
    """
    return Html(escape(text))


def element(name: str, *content: Html, **attributes: str | float) -> Html:
    """An element. Attributes are escaped; `_` in names becomes `-`, a trailing one is dropped.

    Example:
        >>> element("text", plain("x"), class_="label", text_anchor="end")
        '<text class="label" text-anchor="end">x</text>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_written(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{''.join(content)}</{name}>")


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def visible(token: str) -> str:
    """A token with whitespace and unprintable characters made visible.

    Example:
        >>> visible(" the"), visible("\\n"), visible("\\x00")
        ('·the', '↵', '\\\\x00')
    """
    return "".join(_shown(sign) for sign in token)


def _shown(sign: str) -> str:
    if sign in _INVISIBLE:
        return _INVISIBLE[sign]
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
