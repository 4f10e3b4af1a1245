"""Picture: what every picture can do. Drawn: a result that draws itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensbridge.elsewhere.hinted import Hinted
from lensbridge.elsewhere.picture import PICTURE, RESULT
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.viz import canvas
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.still import with_still
from lensbridge.viz.svg import standalone
from lensbridge.viz.theme import THEMES, ThemeName, css

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".svg", ".png", ".pdf")

_FRAME = (
    ".lb{background:var(--lb-paper);color:var(--lb-ink);padding:4px;overflow-x:auto;"
    "font:13px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
    ".lb svg{display:block}.lb-panels{display:flex;flex-wrap:wrap;gap:12px}"
    ".lb-panels>div{min-width:0;max-width:100%;overflow-x:auto}"
    ".lb-panels>.lb-whole-row{flex:1 1 100%}"
)

_KEY = "padding:1px 14px 1px 0;text-align:left;vertical-align:top;color:var(--lb-muted)"
_TEXT = "padding:1px 0;text-align:left;white-space:pre-wrap"


class Picture(Hinted, ABC):
    """A picture. As the last line of a notebook cell it shows itself.

    It needs no network and, but for attention and graphs, no script.
    """

    title: str
    _instead = PICTURE

    def __repr__(self) -> str:
        width, height = self.size
        return f"{type(self).__name__}({self.title!r}, {width:.0f} x {height:.0f} pixels)"

    @property
    @abstractmethod
    def size(self) -> tuple[float, float]:
        """Width and height in CSS pixels."""

    @abstractmethod
    def draw(self, canvas: canvas.Canvas) -> None:
        """Draw it with matplotlib, onto a canvas of its size."""

    @property
    def figure(self) -> Any:
        """The picture for plotly, as `plotly.graph_objects.Figure`'s `data` and `layout`.

        Raises:
            LensbridgeError: plotly has no chart of this kind.
        """
        raise LensbridgeError(
            f"{type(self).__name__} has no form in plotly. Save it instead: save('x.html'), "
            "save('x.svg') or save('x.png')."
        )

    def svg(self, theme: ThemeName = "auto") -> Html:
        """The picture as an SVG element.

        Args:
            theme: "light" or "dark"; "auto" takes the colours of the page around it.

        Raises:
            InputError: no such theme.
        """
        return canvas.svg_of(self.draw, self.size, self.title, _known(theme))

    def png(self, theme: ThemeName = "light", scale: float = 2) -> bytes:
        """The picture as PNG, with `scale` pixels for each CSS pixel."""
        return canvas.png_of(self.draw, self.size, _known(theme), scale)

    def fragment(self) -> Html:
        """The picture as a piece of HTML that can stand in any page, with its own colours."""
        return framed(self.svg())

    def html(self, theme: ThemeName = "auto") -> str:
        """The picture as a page of its own, which fetches nothing."""
        return page_of(self.title, self.fragment(), _known(theme))

    def save(self, path: str | PathLike[str], theme: ThemeName | None = None) -> Path:
        """Write it to a file.

        Args:
            path: its ending chooses the kind of file: `.html`, `.svg`, `.png` or `.pdf`.
            theme: the colours; None is "auto" for HTML, which follows the reader's system, and
                "light" for the others.

        Returns:
            The path.

        Raises:
            InputError: another ending, or no such theme.
            OSError: the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(
                f"Pictures are saved as {', '.join(SUFFIXES)}; {path.name!r} ends in "
                f"{path.suffix or 'nothing'!r}."
            )
        theme = _known(theme or ("auto" if suffix == ".html" else "light"))
        path.write_bytes(self._file(suffix, theme))
        return path

    def _file(self, suffix: str, theme: ThemeName) -> bytes:
        if suffix == ".png":
            return self.png(theme)
        if suffix == ".pdf":
            return canvas.pdf_of(self.draw, self.size, theme)
        if suffix == ".svg":
            return standalone(self.svg(theme), theme).encode()
        return self.html(theme).encode()

    def to_matplotlib(self, theme: ThemeName = "light") -> "Figure":
        """The picture as a `matplotlib.figure.Figure`, to be changed or put into a paper."""
        return canvas.figure_of(self.draw, self.size, "light" if theme == "auto" else _known(theme))

    def to_plotly(self) -> Any:
        """The picture as a `plotly.graph_objects.Figure`: zoom, hover, plotly's own export.

        Raises:
            LensbridgeError: plotly is not installed, or has no chart of this kind.
        """
        try:
            from plotly.graph_objects import Figure
        except ModuleNotFoundError:
            raise LensbridgeError(
                "to_plotly needs plotly: pip install 'lensbridge[plotly]'. plot(), save() and "
                "to_matplotlib() do without."
            ) from None
        return Figure(**self.figure)

    def _repr_html_(self) -> str:
        if type(self).fragment is not Picture.fragment:
            return with_still(self.fragment(), self.svg("light"), self.title)
        svg = self.svg()
        return with_still(framed(svg), svg, self.title)


class Drawn(Hinted):
    """A result that draws itself: subclasses have `plot`, which returns a `Picture`."""

    _instead = RESULT

    def plot(self, *args: Any, **options: Any) -> Picture:
        """The picture."""
        raise NotImplementedError

    def save(self, path: str | PathLike[str], **options: Any) -> Path:
        """Write its picture to a file: `.html`, `.svg`, `.png` or `.pdf`.

        Args:
            path: the file.
            options: those of `plot`.

        Returns:
            The path.

        Raises:
            InputError: another ending, or options that `plot` refuses.
        """
        return self.plot(**options).save(path)

    def to_plotly(self, **options: Any) -> Any:
        """Its picture as a `plotly.graph_objects.Figure`; `options` are those of `plot`.

        Raises:
            LensbridgeError: plotly is not installed, or has no chart of this kind.
        """
        return self.plot(**options).to_plotly()

    def _repr_html_(self) -> str:
        """What a notebook shows. Text, if what to draw has to be chosen first."""
        try:
            return self.plot()._repr_html_()
        except InputError as error:
            text = element("pre", plain(repr(self)))
            return framed(Html(text + element("p", plain(f"No picture of all of it: {error}"))))


def framed(*content: Html, style: str = "") -> Html:
    """Content with the colours of pictures, to stand in a notebook or a page."""
    rules = element("style", Html(f"{css()}\n{_FRAME}{style}"))
    return element("div", rules, *content, class_="lb")


def described(name: str, about: Mapping[str, str]) -> Html:
    """Something in words, as a small table to stand in a notebook."""
    rows = [
        element(
            "tr", element("th", plain(key), style=_KEY), element("td", plain(text), style=_TEXT)
        )
        for key, text in about.items()
    ]
    return framed(element("strong", plain(name)), element("table", *rows))


def page_of(title: str, content: Html, theme: ThemeName = "auto") -> str:
    """A self-contained page."""
    style = f"{css('body')}body{{margin:12px;background:var(--lb-paper)}}"
    head = Html(
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>'
        + element("title", plain(title or "lensbridge"))
        + element("style", Html(style))
    )
    theme_of_page = "" if theme == "auto" else f' theme="{theme}"'
    body = element("body", content)
    return f'<!DOCTYPE html>\n<html lang="en"{theme_of_page}><head>{head}</head>{body}</html>\n'


def _known(theme: ThemeName) -> ThemeName:
    if theme not in THEMES:
        raise InputError(f"A theme is {', '.join(map(repr, THEMES))}, not {theme!r}.")
    return theme
