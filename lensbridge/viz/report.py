"""One self-contained HTML page: prose, tables, figures and code; light, dark, and on a phone.

The page is also well-formed XML, so that a parser can check it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.theme import css


@dataclass(frozen=True)
class Finding:
    """One result in three lines.

    Args:
        topic: the question.
        value: the answer, a number or a few words.
        remark: what it means, in a sentence; may contain `code`.
    """

    topic: str
    value: str
    remark: str


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    anchor: str
    parts: tuple[Html, ...]


def prose(text: str) -> Html:
    """A sentence as markup, with `code` between backticks.

    Example:
        >>> prose("the `q` & `k`")
        'the <code>q</code> &amp; <code>k</code>'
    """
    pieces = [plain(piece) for piece in text.split("`")]
    marked = [element("code", piece) if i % 2 else piece for i, piece in enumerate(pieces)]
    return Html("".join(marked))


def paragraph(text: str) -> Html:
    """A paragraph of prose."""
    return element("p", prose(text))


def verdict(text: str, good: bool) -> Html:
    """A paragraph with the result of a check."""
    return element("p", prose(text), class_="verdict good" if good else "verdict bad")


def figure(picture: Html, title: str, caption: str, *, beside: bool = False) -> Html:
    """A picture with a title and a caption; if it is wider than the screen, it scrolls.

    Args:
        picture: the picture.
        title: the title.
        caption: what it shows.
        beside: whether the caption stands on the right of the picture, if there is room.
    """
    heading = element("h3", plain(title))
    frame = element("div", picture, class_="scroll")
    content = element("div", frame, element("figcaption", prose(caption)), class_="content")
    return element("figure", heading, content, class_="beside" if beside else "below")


def side_by_side(*figures: Html, least: int = 460) -> Html:
    """Figures side by side if each has as many pixels, otherwise below each other."""
    return element("div", *figures, class_="figures", style=f"--least:{least}px")


def stacked(*figures: Html) -> Html:
    """Figures below each other, as one item of a row."""
    return element("div", *figures)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], totals: int = 0) -> Html:
    """A table whose first column is text and whose others are numbers.

    Args:
        headers: one for each column.
        rows: the cells; prose.
        totals: how many of the last rows are totals.
    """
    head = element("tr", *(element("th", prose(text), scope="col") for text in headers))
    body = [
        element("tr", *map(_cell, row), class_="total" if len(rows) - i <= totals else "part")
        for i, row in enumerate(rows)
    ]
    return element("table", element("thead", head), element("tbody", *body))


def _cell(text: str) -> Html:
    return element("td", prose(text))


def code(text: str, summary: str = "The code, with lensbridge") -> Html:
    """Code that is folded until the reader opens it."""
    block = element("pre", element("code", plain(text.strip())))
    return element("details", element("summary", plain(summary)), block)


def page(
    title: str, lead: str, findings: Sequence[Finding], sections: Sequence[Section], closing: str
) -> str:
    """The whole document."""
    header = element("header", element("h1", plain(title)), paragraph(lead))
    tiles = element("ul", *map(_tile, findings), class_="findings")
    main = element("main", header, tiles, *map(_section, sections))
    body = element("body", main, element("footer", paragraph(closing)))
    return f"<!DOCTYPE html>\n{element('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Html:
    own = files("lensbridge.viz").joinpath("report.css").read_text(encoding="utf-8")
    style = element("style", Html(f"\n{css(':root')}\n{own}"))
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1" />'
    schemes = '<meta name="color-scheme" content="light dark" />'
    metas = Html(f'<meta charset="utf-8" />{viewport}{schemes}')
    return element("head", metas, element("title", plain(title)), style)


def _tile(finding: Finding) -> Html:
    return element(
        "li",
        element("span", prose(finding.topic), class_="topic"),
        element("strong", prose(finding.value)),
        element("span", prose(finding.remark)),
    )


def _section(section: Section) -> Html:
    heading = element("h2", plain(section.title))
    return element("section", heading, *section.parts, id=section.anchor)
