"""Text whose tokens are coloured by a value: loss, a neuron, an SAE feature, an attribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.heading import Heading
from lensbridge.viz.labels import width
from lensbridge.viz.legend import Legend
from lensbridge.viz.markup import Html, element, plain, visible
from lensbridge.viz.numbers import short
from lensbridge.viz.picture import Picture, framed
from lensbridge.viz.scale import STRONG, Scale

LINE = 22.0
WIDTH = 640.0

STYLE = (
    ".lb-text{line-height:1.9;overflow-wrap:anywhere;max-width:90ch}"
    ".lb-token{border-radius:3px;padding:2px 0;white-space:pre-wrap}"
    ".lb-token[data-chosen]{outline:2px solid var(--lb-ink)}"
)


@dataclass(frozen=True, repr=False)
class ColouredText(Picture):
    """A text, each token on the colour of its value. The pointer over a token shows the number.

    Args:
        title: what it shows, written above it.
        tokens: the tokens as text.
        values: a value for each token.
        scale: the colour scale; None: from the values, with a round end.
        unit: what is measured, for the legend and the tips.
        marked: tokens to frame.
        tips: what to show when the pointer is over a token, in place of its value.
        explained: whether the colours are explained below it.

    Raises:
        ValueError: another number of values than of tokens, or a value that is not finite.
    """

    title: str
    tokens: Sequence[str]
    values: Sequence[float]
    scale: Scale = field(default=None)  # type: ignore[assignment]  # set in __post_init__
    unit: str = ""
    marked: Sequence[int] = ()
    tips: Sequence[str] | None = None
    explained: bool = True

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.values):
            raise ValueError(f"{len(self.values)} values for {len(self.tokens)} tokens.")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"{self.title!r} has values that are not finite numbers.")
        if self.scale is None:
            object.__setattr__(self, "scale", Scale.fitting([self.values], unit=self.unit))

    def fragment(self) -> Html:
        """The text as a piece of HTML that can stand in any page."""
        head = [element("strong", plain(self.title))] if self.title else []
        legend = [self.legend()] if self.explained else []
        return framed(*head, self.words(), *legend, style=STYLE)

    def words(self) -> Html:
        """The coloured tokens alone, for a page that has the style rules `STYLE`."""
        return element("div", *map(self._token, range(len(self.tokens))), class_="lb-text")

    def _token(self, i: int) -> Html:
        value = self.values[i]
        strength = self.scale.strength(value)
        share = f"{100 * strength:.0f}%"
        style = f"background:color-mix(in srgb,{self.scale.colour(value)} {share},transparent);"
        style += f"color:{'#fff' if strength >= STRONG else 'var(--lb-cell-ink)'}"
        attributes = {"class": "lb-token", "style": style, "title": self._tip(i)}
        if i in self.marked:
            attributes["data-chosen"] = "true"
        after = Html("<br/>") if "\n" in self.tokens[i] else Html("")
        return Html(element("span", plain(readable(self.tokens[i])), **attributes) + after)

    def _tip(self, i: int) -> str:
        if self.tips is not None:
            return self.tips[i]
        return f"{i} {visible(self.tokens[i])}: {self.values[i]:.4g} {self.unit}".strip()

    def legend(self) -> Html:
        """From which value to which the colours run."""
        scale = self.scale
        ends = f"{short(scale.low)} to {short(scale.limit)} {scale.unit}".strip()
        low = f"{scale.colour(-1)},transparent," if scale.diverging else "transparent,"
        bar = f"background:linear-gradient(90deg,{low}{scale.colour(1)});display:inline-block;"
        bar += "width:120px;height:9px;margin-right:8px"
        muted = "color:var(--lb-muted);font-size:11px;margin-top:4px"
        return element("div", element("span", style=bar), plain(ends), style=muted)

    # --- for files ---------------------------------------------------------------------------

    @cached_property
    def _placed(self) -> list[tuple[float, float, float]]:
        """Left edge, line and width of each token."""
        places, x, line = [], 0.0, 0
        for token in self.tokens:
            room = width(readable(token)) + 2
            if x and x + room > WIDTH:
                x, line = 0.0, line + 1
            places.append((x, float(line), room))
            x += room
            if "\n" in token:
                x, line = 0.0, line + 1
        return places

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, WIDTH)

    @property
    def _top(self) -> float:
        return self._heading.height + 2

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        lines = self._placed[-1][1] + 1 if self._placed else 1
        return WIDTH + 16, self._top + lines * LINE + (36 if self.explained else 4)

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        for i, (left, line, room) in enumerate(self._placed):
            value, strength = self.values[i], self.scale.strength(self.values[i])
            x, y = 8 + left, self._top + line * LINE
            colour = self.scale.colour(value)
            canvas.box(x, y, room, LINE - 3, colour, strength=strength, tip=self._tip(i))
            if i in self.marked:
                canvas.box(x, y, room, LINE - 3, "", outline=canvas.theme.ink)
            ink = "#ffffff" if strength >= STRONG else canvas.theme.cell_ink
            middle = x + room / 2, y + LINE / 2 - 2
            canvas.text(readable(self.tokens[i]).strip(), *middle, "center", colour=ink)
        if self.explained:
            Legend(self.scale, WIDTH).draw(canvas, 8, self.size[1] - 26)


def readable(token: str) -> str:
    """A token in running text: spaces stay spaces, the rest is made visible.

    Example:
        >>> readable(" a\\n")
        ' a↵'
    """
    return "".join(sign if sign == " " else visible(sign) for sign in token)
