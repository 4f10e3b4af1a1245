"""ActivationCard: what is known of one value of a model, as numbers and as a picture."""

from dataclasses import dataclass

from lensbridge.maxima.effects import LogitEffects
from lensbridge.maxima.peaks import Peak
from lensbridge.maxima.tally import Tally
from lensbridge.viz import Card, CardText, Drawn
from lensbridge.viz.numbers import short


@dataclass(frozen=True, repr=False)
class ActivationCard(Drawn):
    """One value of a model: a neuron, or a feature of an SAE.

    Args:
        name: what it is.
        peaks: the texts in which it is largest, the largest first.
        tokens: for each of these the text of its tokens.
        tally: how often its values occur.
        texts: how many texts were run.
        effects: what its direction adds to the logits; None where that is not known.
        sparse: whether it is 0 at most tokens, as features of SAEs are.
    """

    name: str
    peaks: tuple[Peak, ...]
    tokens: tuple[tuple[str, ...], ...]
    tally: Tally
    texts: int
    effects: LogitEffects | None
    sparse: bool

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}: largest {self.tally.high:.4g}, above 0 at "
            f"{self.tally.density:.2%} of {self.tally.count} tokens)"
        )

    def plot(self, *, title: str = "") -> Card:
        """The texts around the largest values, a histogram, and the tokens it promotes.

        Args:
            title: written above it; if empty, what it is.
        """
        tally = self.tally
        counts, edges = tally.histogram(positive=self.sparse)
        counted = f"{tally.count:,} tokens in {self.texts} texts"
        effects = self.effects or LogitEffects((), ())
        return Card(
            title or self.name,
            {
                "above 0 at": f"{tally.density:.3%} of {counted}",
                "values": f"{short(tally.low)} to {short(tally.high)}, mean {short(tally.mean)}",
            },
            [
                CardText(words, peak.values, peak.at, f"text {peak.text}, token {peak.position}")
                for words, peak in zip(self.tokens, self.peaks, strict=True)
            ],
            counts,
            edges,
            effects.promoted,
            effects.suppressed,
            "activations above 0" if self.sparse else "activations",
        )
