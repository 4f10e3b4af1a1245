"""matplotlib as the engine of pictures: figures in pixels, as SVG that follows the page's theme.

Coordinates are CSS pixels from the top left corner. Pictures take no part of `pyplot`: nothing is
shared between figures, and no backend is chosen.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from itertools import count, groupby
from math import isnan
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lensbridge.forks import in_forked
from lensbridge.viz.labels import FONT
from lensbridge.viz.markup import Html
from lensbridge.viz.svg import cleaned
from lensbridge.viz.theme import AUTO, THEMES, Theme, ThemeName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Side: TypeAlias = Literal["left", "center", "right"]

DPI = 72  # one point of matplotlib is one CSS pixel
_FONTS = ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Color Emoji"]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lensbridge",
    "text.parse_math": False,  # a token may contain dollar signs
    "font.size": FONT,
    "axes.unicode_minus": True,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "path.simplify": True,
}
_lock = RLock()  # matplotlib's settings belong to the process


@in_forked
def _renew_lock() -> None:
    """In a forked process no other thread draws."""
    global _lock
    _lock = RLock()


@dataclass
class Canvas:
    """A part of a matplotlib figure, addressed in pixels.

    Args:
        figure: a figure, or a part of one.
        width: its width in pixels.
        height: its height.
        theme: the colours.
        tips: texts shown when the pointer is over a mark, by the mark's id.
        order: later marks are drawn over earlier ones.
        origin: the left upper corner of this part.
    """

    figure: "FigureBase"
    width: float
    height: float
    theme: Theme
    tips: dict[str, str] = field(default_factory=dict)
    order: Iterator[int] = field(default_factory=lambda: count(1))
    origin: tuple[float, float] = (0.0, 0.0)
    _whole: tuple[float, float] | None = None
    _axes: Any = None

    def part(self, x: float, y: float, width: float, height: float) -> "Canvas":
        """A rectangle of this canvas as a canvas of its own; `y` counts from the top."""
        origin = (self.origin[0] + x, self.origin[1] + y)
        whole = self._whole or (self.width, self.height)
        shared = self.theme, self.tips, self.order
        return Canvas(self.figure, width, height, *shared, origin, whole, self.axes)

    @property
    def axes(self) -> "Axes":
        """One invisible pair of axes over the whole figure, in pixels, `y` downwards."""
        if self._axes is None:
            whole = self._whole or (self.width, self.height)
            axes = self.figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set_xlim(0, whole[0])
            axes.set_ylim(whole[1], 0)
            self._axes = axes
        return self._axes

    def text(
        self,
        words: str,
        x: float,
        y: float,
        align: Side = "left",
        *,
        colour: str | None = None,
        size: float = FONT,
        turn: float = 0,
        bold: bool = False,
    ) -> None:
        """Text whose middle line is at `y`; turned text is anchored at its end."""
        self.axes.text(
            self.origin[0] + x,
            self.origin[1] + y,
            words,
            ha=align,
            va="center",
            color=colour or self.theme.ink,
            fontsize=size,
            rotation=turn,
            rotation_mode="anchor",
            fontweight="bold" if bold else "normal",
            clip_on=False,
            zorder=next(self.order),
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        *,
        strength: float = 1.0,
        tip: str = "",
        outline: str | None = None,
        thickness: float = 1.6,
    ) -> None:
        """A rectangle; `outline` draws only its border."""
        from matplotlib.patches import Rectangle

        corner = (self.origin[0] + x, self.origin[1] + y)
        if outline is None:
            patch = Rectangle(corner, width, height, facecolor=colour, alpha=strength, linewidth=0)
        else:
            patch = Rectangle(corner, width, height, fill=False, edgecolor=outline)
            patch.set_linewidth(thickness)
        self._add(patch, tip)

    def line(
        self,
        xs: list[float],
        ys: list[float],
        colour: str,
        *,
        thickness: float = 1.0,
        dashed: bool = False,
        strength: float = 1.0,
    ) -> None:
        """A line through points."""
        self.axes.plot(
            [self.origin[0] + x for x in xs],
            [self.origin[1] + y for y in ys],
            color=colour,
            linewidth=thickness,
            linestyle="--" if dashed else "-",
            alpha=strength,
            solid_joinstyle="round",
            clip_on=False,
            zorder=next(self.order),
        )

    def dot(self, x: float, y: float, colour: str, *, radius: float = 3, tip: str = "") -> None:
        """A filled circle."""
        from matplotlib.patches import Circle

        centre = (self.origin[0] + x, self.origin[1] + y)
        patch = Circle(centre, radius, facecolor=colour, linewidth=0, clip_on=False)
        self._add(patch, tip)

    def area(self, xs: list[float], low: list[float], high: list[float], colour: str) -> None:
        """The area between two lines, with a gap where one of them has NaN."""
        from matplotlib.patches import Polygon

        points = zip(xs, low, high, strict=True)
        for there, run in groupby(points, key=lambda point: not any(map(isnan, point))):
            if there:
                part = [(self.origin[0] + x, self.origin[1] + a, b - a) for x, a, b in run]
                upper = [(x, y + up) for x, y, up in reversed(part)]
                edge = [*((x, y) for x, y, _ in part), *upper]
                self._add(Polygon(edge, facecolor=colour, alpha=0.18, linewidth=0), "")

    def pixels(self, x: float, y: float, width: float, height: float, rgba: Any) -> None:
        """An image `[row, column, 4]` over a rectangle, without smoothing."""
        left, top = self.origin[0] + x, self.origin[1] + y
        limits = self.axes.get_xlim(), self.axes.get_ylim()
        self.axes.imshow(
            rgba,
            extent=(left, left + width, top + height, top),
            interpolation="nearest",
            aspect="auto",
            resample=False,
            zorder=next(self.order),
        )
        self.axes.set_xlim(limits[0])
        self.axes.set_ylim(limits[1])

    def _add(self, patch: Any, tip: str) -> None:
        patch.set_zorder(next(self.order))
        if tip:
            name = f"lb-tip-{len(self.tips)}"
            self.tips[name] = tip
            patch.set_gid(name)
        self.axes.add_patch(patch)


Draw: TypeAlias = Callable[[Canvas], None]


def figure_of(draw: Draw, size: tuple[float, float], theme: ThemeName) -> "Figure":
    """A matplotlib figure with a picture on it."""
    with _settings():
        return _drawn(draw, size, THEMES[theme])[0]


def png_of(draw: Draw, size: tuple[float, float], theme: ThemeName, scale: float) -> bytes:
    """A picture as PNG, `scale` pixels for a CSS pixel."""
    return _written(draw, size, "light" if theme == "auto" else theme, "png", DPI * scale)


def pdf_of(draw: Draw, size: tuple[float, float], theme: ThemeName) -> bytes:
    """A picture as PDF."""
    return _written(draw, size, "light" if theme == "auto" else theme, "pdf", DPI)


def svg_of(draw: Draw, size: tuple[float, float], title: str, theme: ThemeName) -> Html:
    """A picture as an SVG element. With the theme "auto" its colours are CSS variables."""
    with _settings(), StringIO() as file:
        figure, canvas = _drawn(draw, size, THEMES[theme])
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        text = file.getvalue()
    return cleaned(text, size, title, canvas.tips)


def _written(
    draw: Draw, size: tuple[float, float], theme: ThemeName, kind: str, dpi: float
) -> bytes:
    with _settings(), BytesIO() as file:
        figure, _ = _drawn(draw, size, THEMES[theme])
        figure.savefig(file, format=kind, dpi=dpi, facecolor=THEMES[theme].paper)
        return file.getvalue()


def _drawn(draw: Draw, size: tuple[float, float], theme: Theme) -> "tuple[Figure, Canvas]":
    from matplotlib.figure import Figure

    background = "none" if theme is AUTO else theme.paper
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor=background)
    canvas = Canvas(figure, *size, theme)
    draw(canvas)
    return figure, canvas


@contextmanager
def _settings() -> Iterator[None]:
    from matplotlib import font_manager, rc_context

    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        known = {font.name for font in font_manager.fontManager.ttflist}
        fonts = [name for name in _FONTS if name in known]
        with rc_context({**_STYLE, "font.family": fonts}):
            yield
