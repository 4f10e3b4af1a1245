"""Continuations: what a model writes without interventions and with them."""

from dataclasses import dataclass

from torch import Tensor

from lensbridge.viz import Drawn, Heatmap, Scale
from lensbridge.viz.labels import label_of
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.picture import framed

SIDES = ("without", "with")


@dataclass(frozen=True, repr=False)
class Continuations(Drawn):
    """A text continued without interventions and with them.

    Args:
        prompt: the text.
        without: the text and its continuation without interventions.
        steered: the same with them.
        tokens: the likeliest next tokens of either run, the likeliest without interventions first.
        probabilities: of these tokens, `[2, token]`: without interventions, and with them.
    """

    prompt: str
    without: str
    steered: str
    tokens: tuple[str, ...]
    probabilities: Tensor

    def __str__(self) -> str:
        return f"without: {self.without}\nwith:    {self.steered}"

    def __repr__(self) -> str:
        return str(self)

    def plot(self, *, title: str = "") -> Heatmap:
        """The probabilities of the next token, without interventions and with them."""
        return Heatmap(
            title or f"The next token after “{label_of(self.prompt[-60:])}”",
            self.probabilities.tolist(),
            SIDES,
            self.tokens,
            Scale(1.0, diverging=False, unit="probability"),
            axes=("", "next token"),
        )

    def _repr_html_(self) -> str:
        texts = element("table", *map(self._row, SIDES, (self.without, self.steered)))
        return framed(texts, self.plot().svg())

    def _row(self, side: str, text: str) -> Html:
        """One of the texts, what was added in bold."""
        start = self.prompt if text.startswith(self.prompt) else ""
        added = element("strong", plain(text[len(start) :]))
        cells = (
            element("th", plain(side), style=f"{_CELL};color:var(--lb-muted)"),
            element("td", plain(start), added, style=f"{_CELL};white-space:pre-wrap"),
        )
        return element("tr", *cells)


_CELL = "padding:2px 14px 2px 0;text-align:left;vertical-align:top;font-weight:400"
