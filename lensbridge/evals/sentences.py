"""The sentences of the indirect-object task: templates, names, nouns, and filled-in sentences."""

import re
from dataclasses import dataclass
from typing import TypeAlias

Pieces: TypeAlias = list[tuple[str, str]]
"""A sentence as pieces `(slot, text)`; for the text between slots, the slot is ""."""

TEMPLATES = (
    "Then, [A] and [B] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
    "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
    "When [A] and [B] went to the [LOCATION], [B] handed the [OBJECT] to [A]",
    "After [B] and [A] went to the [LOCATION], [B] passed the [OBJECT] to [A]",
    "While [A] and [B] were at the [LOCATION], [B] offered the [OBJECT] to [A]",
    "Yesterday [B] and [A] had a long day at the [LOCATION], and [B] sent the [OBJECT] to [A]",
)
"""[A] is the indirect object, [B] the subject; the last [A] is what the model is to predict."""

NAMES = (
    "John Mary Tom James Anna Sarah Peter Laura David Emma Paul Alice Mark Simon Daniel Grace "
    "Michael Robert Rachel Kevin Brian Susan George Henry Martin Frank Maria Steven Amy "
    "Andrew Kate Jack Ruth Jane Luke Rose"
)
"""English first names that most tokenizers have as one token."""

NOUNS = {
    "LOCATION": ("store", "market", "school", "park", "garden", "office", "station", "library"),
    "OBJECT": ("ring", "book", "ball", "letter", "drink", "cake", "hat", "key"),
}

SLOT = re.compile(r"\[(\w+)\]")


@dataclass(frozen=True)
class Sample:
    """One sentence, cut before the name that is to be predicted.

    Args:
        template: the template.
        io: the name of the indirect object; `s` that of the subject.
        c: a third name, which replaces the second subject in `with_third`.
        nouns: the words of the other slots.
    """

    template: str
    io: str
    s: str
    c: str | None
    nouns: tuple[tuple[str, str], ...]

    @property
    def pieces(self) -> Pieces:
        """The sentence as pieces `(slot, text)`; for the text between slots, the slot is ""."""
        filled = {"A": self.io, "B": self.s, **dict(self.nouns)}
        parts = SLOT.split(self.template)
        return [
            (part, filled[part]) if i % 2 else ("", part) for i, part in enumerate(parts) if part
        ]

    @property
    def text(self) -> str:
        """The whole sentence, the answer included."""
        return "".join(text for _, text in self.pieces)

    def as_input(self) -> str:
        """What a run takes of it: the sentence without the answer."""
        return self.text.removesuffix(f" {self.io}")

    def swapped(self) -> "Sample":
        """The same sentence with the two names swapped."""
        return Sample(self.template, self.s, self.io, self.c, self.nouns)

    def with_third(self) -> Pieces:
        """The pieces with the third name as the last subject."""
        assert self.c is not None
        return self._second_subject(self.c)

    def with_other(self) -> Pieces:
        """The pieces with the indirect object as the last subject."""
        return self._second_subject(self.io)

    def _second_subject(self, name: str) -> Pieces:
        last = max(i for i, (slot, _) in enumerate(self.pieces) if slot == "B")
        return [(slot, name if i == last else text) for i, (slot, text) in enumerate(self.pieces)]
