"""A card: a neuron or feature, the texts where it is largest, a histogram, and its tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lensbridge.viz.bars import Bars
from lensbridge.viz.canvas import Canvas
from lensbridge.viz.heading import Heading
from lensbridge.viz.histogram import Histogram
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.numbers import short
from lensbridge.viz.picture import Picture, framed
from lensbridge.viz.scale import Scale
from lensbridge.viz.tokens import STYLE, ColouredText

FACT = 16.0
GAP = 18.0
MEASURES = 380.0, 200.0

CARD_STYLE = (
    ".lb-card-facts{margin:4px 0 8px;color:var(--lb-muted)}"
    ".lb-card-charts{display:flex;flex-wrap:wrap;gap:8px 28px;align-items:flex-start}"
    ".lb-card-charts>div{min-width:0;max-width:100%;overflow-x:auto}"
    ".lb-card-text{margin:6px 0;padding-left:10px;border-left:3px solid var(--lb-rule)}"
    ".lb-card-where{color:var(--lb-muted);font-size:11px}"
)


@dataclass(frozen=True)
class Counts(Histogram):
    """A histogram whose values were counted before.

    Args:
        counts: how many values are in each interval.
        edges: the edges of the intervals, one more.
    """

    counts: Sequence[int] = ()
    edges: Sequence[float] = ()

    @cached_property
    def counted(self) -> tuple[list[int], list[float]]:
        """How many values each interval has, and the edges, one more than intervals."""
        return list(self.counts), list(self.edges)


@dataclass(frozen=True)
class CardText:
    """A text of a card.

    Args:
        tokens: the tokens around the largest value.
        values: their values.
        peak: which of them has the largest value.
        where: where it is from.
    """

    tokens: Sequence[str]
    values: Sequence[float]
    peak: int
    where: str


@dataclass(frozen=True, repr=False)
class Card(Picture):
    """A neuron or a feature.

    Args:
        title: what it is, written above it.
        facts: a few numbers, by name.
        texts: the texts in which it is largest, the largest first.
        counts: how many values are in each interval.
        edges: the edges of the intervals, one more.
        promoted: tokens whose logits it raises, and by how much.
        suppressed: tokens whose logits it lowers.
        counted: what was counted, for the histogram.

    Raises:
        ValueError: another number of edges than of intervals and one.
    """

    title: str
    facts: Mapping[str, str]
    texts: Sequence[CardText]
    counts: Sequence[int] = ()
    edges: Sequence[float] = ()
    promoted: Sequence[tuple[str, float]] = ()
    suppressed: Sequence[tuple[str, float]] = ()
    counted: str = "activations"

    def __post_init__(self) -> None:
        if self.counts and len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.edges)} edges for {len(self.counts)} intervals.")

    def __repr__(self) -> str:
        return f"Card({self.title!r}, {len(self.texts)} texts)"

    @cached_property
    def scale(self) -> Scale:
        """The colours, the same in all texts."""
        return Scale.fitting(*([text.values] for text in self.texts))

    @cached_property
    def coloured(self) -> list[ColouredText]:
        """The texts around the largest values."""
        return [
            ColouredText(
                f"{short(text.values[text.peak])}, {text.where}",
                text.tokens,
                text.values,
                self.scale,
                marked=[text.peak],
                explained=i + 1 == len(self.texts),
            )
            for i, text in enumerate(self.texts)
        ]

    @cached_property
    def charts(self) -> list[Picture]:
        """The histogram and the tokens, as far as they are known."""
        made: list[Picture] = []
        if sum(self.counts):
            title = f"How often: {self.counted}"
            shown = tuple(self.counts), tuple(self.edges)
            made.append(Counts(title, self.edges, "activation", None, MEASURES, *shown))
        ends = [*self.promoted, *reversed(self.suppressed)]
        if ends:
            names, values = zip(*ends, strict=True)
            title = "Effect on the logits: most promoted, most suppressed"
            made.append(Bars(title, list(values), list(names)))
        return made

    def fragment(self) -> Html:
        """The card as a piece of HTML that can stand in any page."""
        facts = "; ".join(f"{name} {fact}" for name, fact in self.facts.items())
        charts = [element("div", chart.svg()) for chart in self.charts]
        return framed(
            element("strong", plain(self.title)),
            element("div", plain(facts), class_="lb-card-facts"),
            element("div", *charts, class_="lb-card-charts"),
            *map(_text, self.coloured),
            *([self.coloured[0].legend()] if self.coloured else []),
            style=STYLE + CARD_STYLE,
        )

    # --- for files ---------------------------------------------------------------------------

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, max(part.size[0] for part in [*self.charts, *self.coloured]))

    def _placed(self) -> Iterator[tuple[Picture, float]]:
        """Each part, and where it begins."""
        y = self._heading.height + FACT * len(self.facts) + 8
        for part in [*self.charts, *self.coloured]:
            yield part, y
            y += part.size[1] + GAP

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        parts = list(self._placed())
        width = max([self._heading.width, *(part.size[0] for part, _ in parts)])
        return width, max(y + part.size[1] for part, y in parts) + 6

    def draw(self, canvas: Canvas) -> None:
        """Draw it onto a canvas of its size."""
        self._heading.draw(canvas)
        for i, (name, fact) in enumerate(self.facts.items()):
            y = self._heading.height + FACT * (i + 0.5)
            canvas.text(f"{name} {fact}", 4, y, colour=canvas.theme.muted)
        for part, y in self._placed():
            part.draw(canvas.part(0, y, *part.size))


def _text(text: ColouredText) -> Html:
    where = element("div", plain(text.title), class_="lb-card-where")
    return element("div", where, text.words(), class_="lb-card-text")
