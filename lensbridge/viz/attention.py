"""Attention patterns of some heads: small ones to choose from, a large one, and over the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lensbridge.errors import InputError
from lensbridge.viz.attention_page import AttentionPage
from lensbridge.viz.canvas import Canvas
from lensbridge.viz.heading import Heading
from lensbridge.viz.heatmap import Heatmap
from lensbridge.viz.labels import shortened
from lensbridge.viz.markup import Html
from lensbridge.viz.picture import Picture
from lensbridge.viz.scale import Scale

MOST_HEADS, MOST_TOKENS = 64, 256
SMALL = 46.0  # a small picture in a file
ACROSS = 12  # of them in a row
GAP = 8.0
UNDER = 16.0  # for the name of a head
FINEST = 128  # pixels of a small picture in a file


@dataclass(frozen=True, eq=False, repr=False)
class AttentionView(Picture):
    """Where heads attend. Choose a head by its small picture, and point at cells and tokens.

    Args:
        title: what it shows, written above it.
        patterns: `[head, query, key]`, a numpy array; what is not finite is left empty.
        queries: the tokens that attend.
        keys: the tokens that are attended to.
        heads: the name of each head.
        chosen: which head is large at first.
        unit: what is measured.
        places: the positions of queries and of keys; None counts them from 0.

    Raises:
        InputError: other shapes, or more heads or tokens than can be shown.
    """

    title: str
    patterns: Any
    queries: Sequence[str]
    keys: Sequence[str]
    heads: Sequence[str]
    chosen: int = 0
    unit: str = "attention"
    places: tuple[Sequence[int], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.patterns.shape)
        if len(shape) != 3 or not all(shape):
            raise InputError(f"Attention is drawn as [head, query, key], not as {list(shape)}.")
        named = len(self.heads), len(self.queries), len(self.keys)
        if shape != named:
            raise InputError(
                f"A pattern of {shape[0]} heads, {shape[1]} queries and {shape[2]} keys needs as "
                f"many names; there are {named[0]} for heads, {named[1]} for queries (tokens) and "
                f"{named[2]} for keys (key_tokens)."
            )
        if shape[0] > MOST_HEADS or max(shape[1:]) > MOST_TOKENS:
            raise InputError(
                f"Up to {MOST_HEADS} heads and {MOST_TOKENS} tokens are drawn, not {shape[0]} "
                f"heads, {shape[1]} queries and {shape[2]} keys. Choose some: head=[0, 1], "
                "positions=slice(0, 128)."
            )
        if not -shape[0] <= self.chosen < shape[0]:
            raise InputError(f"There is no head number {self.chosen}: {shape[0]} are drawn.")

    def __repr__(self) -> str:
        sizes = f"head {len(self.heads)}, query {len(self.queries)}, key {len(self.keys)}"
        return f"AttentionView({self.title!r}, [{sizes}])"

    @cached_property
    def scale(self) -> Scale:
        """The colours, the same for all heads: to 1 for weights, else to the largest value."""
        import numpy as np

        there = self.patterns[np.isfinite(self.patterns)]
        ends = [float(there.min(initial=0.0)), float(there.max(initial=0.0))]
        weights = ends[0] >= 0 and 0.5 < ends[1] <= 1.000_1
        return Scale(1.0, False, self.unit) if weights else Scale.fitting([ends], unit=self.unit)

    def head(self, which: int | None = None) -> Heatmap:
        """One head as a heatmap of its own.

        Args:
            which: its number among those that are shown; None for the chosen one.
        """
        import numpy as np

        which = self.chosen if which is None else which
        grid = self.patterns[which]
        cells = [
            [value if there else None for value, there in zip(*pair, strict=True)]
            for pair in zip(grid.tolist(), np.isfinite(grid).tolist(), strict=True)
        ]
        return Heatmap(
            f"head {self.heads[which]}",
            cells,
            self.queries,
            self.keys,
            self.scale,
            ("query", "key"),
            digits=None,
        )

    # --- in a page ---------------------------------------------------------------------------

    def fragment(self) -> Html:
        """The heads as a piece of HTML that can stand in any page."""
        shown = self.patterns, self.queries, self.keys, self.heads, self.chosen % len(self.heads)
        places = self.places or (range(len(self.queries)), range(len(self.keys)))
        return AttentionPage(self.title, *shown, self.scale, places).html()

    # --- in files ----------------------------------------------------------------------------

    @cached_property
    def _large(self) -> Heatmap:
        return self.head()

    @property
    def _strip(self) -> tuple[int, float]:
        """How many small pictures are in a row, and the height of all rows."""
        count = len(self.heads)
        across = min(count, ACROSS)
        return across, -(-count // across) * (SMALL + UNDER + GAP) if count > 1 else 0.0

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, max(self._large.size[0], self._strip[0] * (SMALL + GAP)))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        across, strip = self._strip
        width = max(self._large.size[0], 8 + across * (SMALL + GAP), self._heading.width)
        return width, self._heading.height + strip + self._large.size[1]

    def draw(self, canvas: Canvas) -> None:
        """Draw all heads small and the chosen one large, onto a canvas of its size."""
        self._heading.draw(canvas)
        across, strip = self._strip
        if strip:
            for i in range(len(self.heads)):
                x, y = 4 + i % across * (SMALL + GAP), i // across * (SMALL + UNDER + GAP)
                self._draw_small(canvas, i, x, self._heading.height + y)
        part = canvas.part(0, self._heading.height + strip, *self._large.size)
        self._large.draw(part)

    def _draw_small(self, canvas: Canvas, which: int, x: float, y: float) -> None:
        large = which == self.chosen % len(self.heads)
        outline = canvas.theme.ink if large else canvas.theme.rule
        canvas.pixels(x, y, SMALL, SMALL, _coloured(self.patterns[which], self.scale))
        canvas.box(x, y, SMALL, SMALL, "", outline=outline, thickness=2.0 if large else 1.0)
        name = shortened(self.heads[which], SMALL + GAP)
        canvas.text(name, x + SMALL / 2, y + SMALL + 9, "center", size=10, bold=large)

    @property
    def figure(self) -> Any:
        """The chosen head for plotly."""
        return self._large.figure


def _coloured(grid: Any, scale: Scale) -> Any:
    """An image `[row, column, 4]`."""
    import numpy as np

    from lensbridge.viz.thumbnail import pooled

    shown = np.nan_to_num(pooled(grid, FINEST), posinf=0.0, neginf=0.0)
    ends = np.array([scale.rgba(-scale.limit)[:3], scale.rgba(scale.limit)[:3]])
    strength = np.clip(np.abs(shown) / scale.limit, 0, 1)[..., None]
    return np.concatenate([ends[(shown >= 0).astype(int)], strength], axis=-1)


def attention(
    pattern: Any,
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
    *,
    heads: Sequence[Any] | None = None,
    chosen: int = 0,
    title: str = "",
    unit: str = "attention",
) -> AttentionView:
    """Draw attention patterns, over a grid and over the text.

    Args:
        pattern: `[head, query, key]` or `[query, key]`: a tensor, an array or lists. What is not
            finite, such as masked scores, is left empty.
        tokens: the text of each query.
        key_tokens: the text of each key, where they are others: cross-attention.
        heads: a name for each head; None counts them.
        chosen: the number of the head that is large at first.
        title: written above it.
        unit: what is measured.

    Raises:
        InputError: names that do not fit the pattern, or more than 64 heads or 256 tokens.

    Example:
        >>> attention([[1.0, 0.0], [0.3, 0.7]], ["The", " cat"])
        AttentionView('', [head 1, query 2, key 2])
    """
    grid = array_of(pattern)
    if grid.ndim == 2:
        grid = grid[None]
    keys = tokens if key_tokens is None else key_tokens
    for name, given in (("tokens", tokens), ("key_tokens", keys)):
        if isinstance(given, str):
            raise InputError(
                f"{name} is a list with the text of each token, not one text: write "
                "model.to_str_tokens(text)."
            )
    count = grid.shape[0] if grid.ndim else 0
    names = list(map(str, range(count) if heads is None else heads))
    return AttentionView(
        title, grid, list(map(str, tokens)), list(map(str, keys)), names, chosen, unit
    )


def array_of(given: Any) -> Any:
    """A tensor, an array or lists as a numpy array of numbers.

    Raises:
        InputError: it has no numbers.
    """
    import numpy as np

    if callable(getattr(given, "detach", None)):
        given = given.detach().cpu().double().numpy()
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A tensor, an array or lists of numbers are drawn, not {given!r:.60}."
        ) from error
