"""What matplotlib writes as SVG, made into an element that can stand in any page."""

import re

from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.theme import AUTO, NAMES, ThemeName, css, variable

SHRINK = 0.85  # how far an SVG shrinks with its column before the reader has to scroll
_WEB_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"

_HEAD = re.compile(r"^.*?<svg[^>]*>", re.DOTALL)
_ELEMENTS = re.compile(
    r"\s*<metadata>.*?</metadata>"
    r"|\s*<style[^>]*>.*?</style>"  # rules for the whole page
    r"|\s*<clipPath.*?</clipPath>",  # all is clipped to the picture anyhow
    re.DOTALL,
)
_EMPTY = re.compile(r"\s*<defs>\s*</defs>")
_TAG = re.compile(r"<[^>]*>")
_ATTRIBUTES = re.compile(r' clip-path="[^"]*"| id="[^"]*"| transform="rotate\(-?0 [^"]*"')
_FONT = re.compile(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*")  # matplotlib before 3.11
_FAMILY = re.compile(r" ?font-family: [^;\"]*;?")
_TIP = re.compile(r'<g id="(lb-tip-\d+)">')


def cleaned(text: str, size: tuple[float, float], title: str, tips: dict[str, str]) -> Html:
    """Matplotlib's file as an element: no ids that a second picture would repeat, tips, colours."""
    width, height = size
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'role="img" stroke-linejoin="round" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:100%;height:auto;'
        f'min-width:{SHRINK * width:.0f}px;font-family:{_WEB_FONT}">'
    )
    text = _EMPTY.sub("", _ELEMENTS.sub("", _HEAD.sub("", text, count=1)))
    text = _TAG.sub(lambda found: _tag(found[0], tips), text)
    return Html(f"{head}{element('title', plain(title))}{text.strip()}")


def _tag(tag: str, tips: dict[str, str]) -> str:
    """One tag; what stands between tags is text of users, and is left alone."""
    tip = _TIP.fullmatch(tag)
    if tip:
        return f"<g>{element('title', plain(tips[tip[1]]))}"
    tag = _FAMILY.sub("", _ATTRIBUTES.sub("", tag))
    tag = _FONT.sub(lambda found: f"font: {found[1]}{found[2]} {_WEB_FONT}", tag)
    for name in NAMES:
        tag = tag.replace(getattr(AUTO, name), f"var({variable(name)})")
    return tag


def standalone(svg: Html, theme: ThemeName) -> str:
    """An SVG element as a file of its own."""
    if theme == "auto":
        style = element("style", Html(css(":root") + "svg{background:var(--lb-paper)}"))
        svg = Html(svg.replace(">", f">{style}", 1))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n'
