"""Attention in a page: buttons for the heads, a grid, the text. `attention.js` is their script.

Without a script the heads are small pictures, the chosen one is large, and the text shows where the
last token attends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from json import dumps
from math import isfinite
from typing import Any

from lensbridge.viz.across import Across
from lensbridge.viz.labels import label_of, shortened, step, widest
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.numbers import rounded, short
from lensbridge.viz.picture import framed
from lensbridge.viz.quantised import Quantised
from lensbridge.viz.scale import STRONG, Scale
from lensbridge.viz.scripts import script, style
from lensbridge.viz.thumbnail import data_uri
from lensbridge.viz.tokens import readable

SMALL = 64  # pixels of a small picture
ROOM = 420.0  # of the large one
WIDEST_CELL = 26.0
LONGEST = 130.0  # of a label


@dataclass(frozen=True)
class AttentionPage:
    """What the page shows; the fields are those of `AttentionView`."""

    title: str
    patterns: Any
    queries: Sequence[str]
    keys: Sequence[str]
    heads: Sequence[str]
    chosen: int
    scale: Scale
    places: tuple[Sequence[int], Sequence[int]]

    def html(self) -> Html:
        """All of it, with its own style rules and script."""
        numbers = Quantised.of(self.patterns)
        inner = [
            *([element("strong", plain(self.title))] if self.title else []),
            *([self._strip()] if len(self.heads) > 1 else []),
            element("div", self._map(), self._texts(), class_="lb-at-both"),
            element("div", class_="lb-at-tip", hidden="hidden"),
        ]
        root = element(
            "div",
            *inner,
            class_="lb-at",
            data_lb_attention=numbers.text,
            data_digits=numbers.digits,
            data_limit=self.scale.limit,
            data_chosen=self.chosen,
            data_heads=dumps(list(self.heads)),
            data_queries=dumps(self._named[0]),
            data_keys=dumps(self._named[1]),
        )
        return framed(root, script("attention.js"), style=style("attention.css"))

    @cached_property
    def _named(self) -> list[list[str]]:
        """Each query and each key as position and token."""
        sides = zip(self.places, (self.queries, self.keys), strict=True)
        return [
            [f"{place} {label_of(token)}" for place, token in zip(*side, strict=True)]
            for side in sides
        ]

    # --- the heads ---------------------------------------------------------------------------

    def _strip(self) -> Html:
        buttons = map(self._button, range(len(self.heads)))
        return element("div", *buttons, class_="lb-at-heads", role="group", aria_label="Heads")

    def _button(self, which: int) -> Html:
        large = which == self.chosen
        uri = data_uri(self.patterns[which], self.scale, SMALL)
        picture = Html(f'<img alt="" src="{uri}"/>')
        name = element("span", plain(self.heads[which]))
        return element(
            "button",
            picture,
            name,
            type="button",
            aria_label=f"head {self.heads[which]}",
            aria_pressed="true" if large else "false",
        )

    # --- the large picture -------------------------------------------------------------------

    @cached_property
    def _cell(self) -> float:
        return min(WIDEST_CELL, ROOM / max(len(self.queries), len(self.keys)))

    @cached_property
    def _across(self) -> Across:
        return Across.of([label_of(key) for key in self.keys], self._cell, self._grid[0])

    @cached_property
    def _rows(self) -> list[str]:
        return [shortened(label_of(query), LONGEST) for query in self.queries]

    @cached_property
    def _grid(self) -> tuple[float, float]:
        return self._cell * len(self.keys), self._cell * len(self.queries)

    @cached_property
    def _corner(self) -> tuple[float, float]:
        return widest(self._rows) + 26, 4.0

    def _map(self) -> Html:
        (left, top), (wide, high) = self._corner, self._grid
        below = max(40.0, self._across.height + 20)
        width, height = max(left + wide + 6, left + 90), top + high + below
        place = {"x": left, "y": top, "width": wide, "height": high}
        drawn = Html(
            f'<image href="{data_uri(self.patterns[self.chosen], self.scale)}" '
            f'x="{left:g}" y="{top:g}" width="{wide:g}" height="{high:g}" '
            'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
        )
        frame = element("rect", **place, class_="lb-at-frame")
        cursor = element("rect", x=left, y=top, width=self._cell, height=self._cell)
        name = f"Attention of head {self.heads[self.chosen]}: queries in rows, keys in columns"
        head = (
            f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            'role="img" class="lb-at-map" style="max-width:100%;height:auto">'
        )
        cursor = Html(cursor.replace("<rect", '<rect class="lb-at-cursor" visibility="hidden"'))
        parts = [element("title", plain(name)), *self._labels(), drawn, frame, cursor]
        svg = Html(f"{head}{''.join(parts)}</svg>")
        return element("div", svg, self._legend(), class_="lb-at-large")

    def _labels(self) -> list[Html]:
        (left, top), (wide, high), cell = self._corner, self._grid, self._cell
        made = []
        for i in range(0, len(self._rows), step(len(self._rows), high, 12.0)):
            made.append(_text(self._rows[i], left - 6, top + (i + 0.5) * cell, "end"))
        bottom = top + high
        names = self._across.names
        every = step(len(names), wide, 14.0) if self._across.turned else self._across.step
        for j in range(0, len(names), every):
            x = left + (j + 0.5) * cell
            if self._across.turned:
                turn = f"rotate(-90 {x:g} {bottom + 6:g})"
                made.append(_text(names[j], x, bottom + 6, "end", transform=turn))
            else:
                made.append(_text(names[j], x, bottom + 11, "middle"))
        middle = top + high / 2
        turn = f"rotate(-90 9 {middle:g})"
        made.append(_text("query", 9, middle, "middle", class_="lb-at-axis", transform=turn))
        under = bottom + max(30.0, self._across.height + 10)
        made.append(_text("key", left + wide / 2, under, "middle", class_="lb-at-axis"))
        return made

    def _legend(self) -> Html:
        scale = self.scale
        low = f"{scale.colour(-1)},transparent," if scale.diverging else "transparent,"
        shades = f"background:linear-gradient(90deg,{low}{scale.colour(1)})"
        ends = f"{short(scale.low)} to {short(scale.limit)} {scale.unit}".strip()
        return element("div", element("span", style=shades), plain(ends), class_="lb-at-legend")

    # --- over the text -----------------------------------------------------------------------

    @property
    def _one_text(self) -> bool:
        return list(self.queries) == list(self.keys)

    def _texts(self) -> Html:
        last = len(self.queries) - 1
        told = element("div", plain(self._told(last)), class_="lb-at-told", role="status")
        parts = [told]
        if not self._one_text:
            parts += [_name("queries"), self._text(self.queries, "queries", None)]
            parts += [_name("keys")]
        parts.append(self._text(self.keys, "keys", self.patterns[self.chosen][last]))
        return element("div", *parts, class_="lb-at-texts")

    def _told(self, query: int) -> str:
        """To which keys a query attends most, as the script writes it too."""
        row = [(v, -i) for i, v in enumerate(self.patterns[self.chosen][query].tolist())]
        largest = sorted((one for one in row if isfinite(one[0]) and one[0]), reverse=True)[:3]
        queries, keys = self._named
        parts = [f"{keys[-i]} {rounded(value, 4)}" for value, i in largest]
        return f"From {queries[query]}, most to: {', '.join(parts) or 'none'}"

    def _text(self, tokens: Sequence[str], side: str, values: Any) -> Html:
        words = []
        for i, token in enumerate(tokens):
            value = 0.0 if values is None else float(values[i])
            words.append(self._token(token, value if isfinite(value) else 0.0))
            if "\n" in token:
                words.append(Html("<br/>"))
        kind = {"data_side": side, "role": "group", "aria_label": f"Text: {side}"}
        return element("div", *words, class_="lb-at-text", **kind)

    def _token(self, token: str, value: float) -> Html:
        strength = self.scale.strength(value)
        share = f"{100 * strength:.0f}%"
        colour = f"background:color-mix(in srgb,{self.scale.colour(value)} {share},transparent)"
        strong = "lb-at-token lb-at-strong" if strength >= STRONG else "lb-at-token"
        return element("span", plain(readable(token)), class_=strong, style=colour)


def _name(side: str) -> Html:
    return element("div", plain(side), class_="lb-at-side")


def _text(words: str, x: float, y: float, anchor: str, **more: str) -> Html:
    anchored = {"text_anchor": anchor, "dominant_baseline": "central", **more}
    return element("text", plain(words), x=x, y=y, **anchored)
