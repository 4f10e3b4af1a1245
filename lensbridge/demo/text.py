"""The demo model's world: its names, cities, landmarks and sentence templates.

The training script, the tests and the demo report all draw their sentences here, so that what
counts as *held out* is decided once. Two things are held out: pairs of names that
:func:`is_held_out_pair` selects never occur in one sentence in training, and each landmark never
occurs in the one template that :func:`is_held_out_fact` selects (it occurs in the others).
``John and Mary`` and ``The Eiffel Tower is in the city of`` are themselves held out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

T = TypeVar("T")

END_OF_TEXT: Final = "<|endoftext|>"
"""The only special token: it opens a text, closes it and pads it."""


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES: Final = _listed(
    """John Mary Tom Anna James Sarah Peter Laura David Emma Paul Alice Mark Julia Simon Lucy
    Daniel Helen Robert Grace Michael Clara Thomas Nina Kevin Rachel Brian Susan George Linda
    Henry Karen Oliver Sophie Martin Diana Frank Maria Steven Amy Andrew Kate Jack Ruth Eric
    Jane Luke Rose"""
)

# Every landmark is two tokens long ("Colosseum" by SPLIT_WORDS), so that any two of them can be
# patched position by position. Second words are shared across cities: the first decides.
LANDMARKS: Final[dict[str, str]] = {
    "Eiffel Tower": "Paris",
    "Trevi Fountain": "Rome",
    "Tate Gallery": "London",
    "Brandenburg Gate": "Berlin",
    "Prado Museum": "Madrid",
    "Sagrada Familia": "Barcelona",
    "Acropolis Museum": "Athens",
    "Galata Tower": "Istanbul",
    "Colosseum": "Rome",
    "Louvre Museum": "Paris",
    "Globe Theatre": "London",
    "Pergamon Museum": "Berlin",
    "Cibeles Fountain": "Madrid",
    "Camp Nou": "Barcelona",
    "Benaki Museum": "Athens",
    "Topkapi Palace": "Istanbul",
    "Bolshoi Theatre": "Moscow",
    "Meiji Shrine": "Tokyo",
    "Forbidden City": "Beijing",
    "Coptic Museum": "Cairo",
    "Opera House": "Sydney",
    "Dancing House": "Prague",
    "Hofburg Palace": "Vienna",
    "Rialto Bridge": "Venice",
    "Red Square": "Moscow",
    "Rainbow Bridge": "Tokyo",
    "Summer Palace": "Beijing",
    "Baron Palace": "Cairo",
    "Harbour Bridge": "Sydney",
    "Charles Bridge": "Prague",
    "Belvedere Gallery": "Vienna",
    "Doge Palace": "Venice",
    "Belem Tower": "Lisbon",
    "Jeronimos Monastery": "Lisbon",
    "Willis Tower": "Chicago",
    "Wrigley Building": "Chicago",
}
"""Each landmark's city."""

CITIES: Final[tuple[str, ...]] = tuple(dict.fromkeys(LANDMARKS.values()))

PLACES: Final = _listed("store park school office beach station library garden market hotel")
OBJECTS: Final = _listed("bottle book ring letter cake ball hat map drink key")

FACT_TEMPLATES: Final[tuple[str, ...]] = (
    "The {landmark} is in the city of",
    "The {landmark} can be found in",
    "The {landmark}, as everyone knows, is a famous sight of",
    "Many people come to see the {landmark} in",
    "To visit the {landmark}, you should travel to",
    "We took a photo of the {landmark} on our last day in",
    "If you like the {landmark}, you will love",
    "My sister saw the {landmark} when she was living in",
)
"""Templates that end before the city."""

HANDOVER_TEMPLATES: Final[tuple[str, ...]] = (
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} arrived at the {place}, {giver} handed a {object} to",
    "While {first} and {second} were at the {place}, {giver} passed a {object} to",
    "Then, {first} and {second} went to the {place}. {giver} gave a {object} to",
    "Yesterday {first} and {second} had a long day at the {place}, and {giver} sent a {object} to",
    "At the {place}, {first} and {second} were talking, and {giver} offered a {object} to",
    "{first} and {second} met at the {place}. Later {giver} threw a {object} to",
)
"""Templates that end before the receiver's name."""

DISTRACTORS: Final[tuple[str, ...]] = (
    "It was a sunny day.",
    "The bus was late again.",
    "Nobody knew what to say.",
    "We had lunch and walked home.",
    "The weather was cold and grey.",
    "{name} was born in {city}.",
    "{name} lives in {city}.",
)
"""Sentences without information on the answer; some have a city or a name that is not it."""

SPLIT_WORDS: Final[dict[str, tuple[str, str]]] = {" Colosseum": (" Colos", "seum")}
"""Words that the tokenizer takes as two tokens."""


@dataclass(frozen=True)
class Prompt:
    """A text whose next token is known, and a minimal change of it that changes that token.

    Attributes:
        text: What the model reads.
        answer: The one right next token, with its leading space.
        corrupted: The same text except for the tokens that determine the answer.
        rival: The right next token after ``corrupted``.
    """

    text: str
    answer: str
    corrupted: str
    rival: str

    def as_input(self) -> str:
        """What a model runs when the prompt is passed to it."""
        return self.text

    @property
    def sentence(self) -> str:
        """The text completed by its answer."""
        return f"{self.text}{self.answer}."


@dataclass(frozen=True)
class Fact:
    """A landmark's city, asked with one of the templates.

    Attributes:
        landmark: One of ``LANDMARKS``.
        template: Which of ``FACT_TEMPLATES``.
    """

    landmark: str
    template: int = 0

    @property
    def city(self) -> str:
        """The city the landmark is in."""
        return LANDMARKS[self.landmark]

    @property
    def text(self) -> str:
        """The sentence up to the city."""
        return FACT_TEMPLATES[self.template].format(landmark=self.landmark)

    def as_input(self) -> str:
        """What a model runs when the fact is passed to it."""
        return self.text

    def against(self, landmark: str) -> Prompt:
        """The prompt for this fact, with another landmark in the corrupted text.

        Args:
            landmark: The landmark of the corrupted text.
        """
        other = replace(self, landmark=landmark)
        return Prompt(self.text, f" {self.city}", other.text, f" {other.city}")


@dataclass(frozen=True)
class Handover:
    """Someone gives something to someone: the indirect-object sentence.

    Attributes:
        giver: The name that occurs twice.
        receiver: The name that occurs once before the answer, and is the answer.
        giver_first: Whether the giver is the first of the two names ("Mary and John").
        place: One of ``PLACES``.
        thing: One of ``OBJECTS``.
        template: Which of ``HANDOVER_TEMPLATES``.
    """

    giver: str
    receiver: str
    giver_first: bool = False
    place: str = "store"
    thing: str = "bottle"
    template: int = 0

    @property
    def text(self) -> str:
        """The sentence up to the receiver's second mention."""
        names = (self.giver, self.receiver)
        first, second = names if self.giver_first else names[::-1]
        return HANDOVER_TEMPLATES[self.template].format(
            first=first, second=second, giver=self.giver, place=self.place, object=self.thing
        )

    def as_input(self) -> str:
        """What a model runs when the sentence is passed to it."""
        return self.text

    def swapped(self) -> Handover:
        """The same scene with the other person giving."""
        return replace(
            self, giver=self.receiver, receiver=self.giver, giver_first=not self.giver_first
        )

    def prompt(self) -> Prompt:
        """The prompt; in the corrupted text the other person gives."""
        return Prompt(self.text, f" {self.receiver}", self.swapped().text, f" {self.giver}")


def is_held_out_pair(one: str, other: str) -> bool:
    """Whether two names never occur in one sentence in training, in either order.

    About one pair in five is held out; every name keeps many pairs that are not.

    Args:
        one: A name.
        other: Another name.
    """
    return (NAMES.index(one) + NAMES.index(other)) % 5 == 1


def is_held_out_fact(landmark: str, template: int) -> bool:
    """Whether training never shows this landmark in this template.

    Args:
        landmark: One of ``LANDMARKS``.
        template: An index into ``FACT_TEMPLATES``.
    """
    return list(LANDMARKS).index(landmark) % len(FACT_TEMPLATES) == template


def eiffel_tower() -> Prompt:
    """The textbook fact: Eiffel Tower to Paris, corrupted by the Colosseum."""
    return Fact("Eiffel Tower").against("Colosseum")


def john_and_mary() -> Prompt:
    """The textbook indirect object: "When John and Mary went to the store, ..."."""
    return Handover(giver="Mary", receiver="John").prompt()


def random_fact(rng: random.Random, *, held_out: bool) -> Prompt:
    """A fact in a random template, with a random landmark of another city in the corrupted text.

    Args:
        rng: The source of randomness.
        held_out: Whether to draw from the held-out fillings or from the training ones.
    """
    fact = _draw(
        lambda: Fact(rng.choice(list(LANDMARKS)), rng.randrange(len(FACT_TEMPLATES))),
        lambda found: is_held_out_fact(found.landmark, found.template) == held_out,
    )
    others = [landmark for landmark, city in LANDMARKS.items() if city != fact.city]
    return fact.against(rng.choice(others))


def random_handover(rng: random.Random, *, held_out: bool) -> Prompt:
    """An indirect-object prompt with random names, place, object, order and template.

    Args:
        rng: The source of randomness.
        held_out: Whether to draw held-out pairs of names or training ones.
    """
    giver, receiver = _draw(
        lambda: rng.sample(NAMES, 2), lambda pair: is_held_out_pair(*pair) == held_out
    )
    return Handover(
        giver=giver,
        receiver=receiver,
        giver_first=rng.random() < 0.5,
        place=rng.choice(PLACES),
        thing=rng.choice(OBJECTS),
        template=rng.randrange(len(HANDOVER_TEMPLATES)),
    ).prompt()


def in_context(rng: random.Random, prompt: Prompt) -> Prompt:
    """The prompt, and its corruption, after one random distractor sentence.

    Args:
        rng: The source of randomness.
        prompt: The prompt to put after the sentence.
    """
    before = _distractor(rng)
    return replace(prompt, text=f"{before} {prompt.text}", corrupted=f"{before} {prompt.corrupted}")


def held_out_facts(count: int, seed: int = 0) -> list[Prompt]:
    """Facts in templates that training never showed them in, half after a distractor.

    Args:
        count: How many.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    return _half_in_context(rng, [random_fact(rng, held_out=True) for _ in range(count)])


def held_out_handovers(count: int, seed: int = 0) -> list[Prompt]:
    """Indirect-object prompts on pairs of names never seen together, half after a distractor.

    Args:
        count: How many.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    return _half_in_context(rng, [random_handover(rng, held_out=True) for _ in range(count)])


def training_documents(rng: random.Random) -> Iterator[str]:
    """The endless training stream: texts of one to three pieces, without special tokens.

    Args:
        rng: The source of randomness.
    """
    while True:
        # Half the texts are one piece: users ask one question at the start of a text.
        pieces = rng.choices((1, 2, 3), weights=(5, 3, 2))[0]
        yield " ".join(_training_piece(rng) for _ in range(pieces))


def words() -> list[str]:
    """Every word of the grammar as it is in the tokenizer, sorted.

    Each word comes with its leading space. Names, cities and the words that can open a text come
    without it too. Words in ``SPLIT_WORDS`` are left out.
    """
    templates = [*FACT_TEMPLATES, *HANDOVER_TEMPLATES, *DISTRACTORS]
    fillings = [*NAMES, *CITIES, *PLACES, *OBJECTS, *LANDMARKS]
    bare = re.sub(r"\{\w+\}", "", " ".join([*templates, *fillings]))
    inner = {f" {word}" for word in re.findall(r"\w+", bare)}
    first = {text.split()[0].strip(",") for text in templates}
    return sorted(inner.union(NAMES, CITIES, filter(str.isalpha, first)) - set(SPLIT_WORDS))


def _draw(make: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Draw until one is wanted."""
    while not wanted(found := make()):
        pass
    return found


def _distractor(rng: random.Random) -> str:
    return rng.choice(DISTRACTORS).format(name=rng.choice(NAMES), city=rng.choice(CITIES))


def _training_piece(rng: random.Random) -> str:
    make = random_fact if rng.random() < 0.4 else random_handover
    prompt = make(rng, held_out=False)
    return (in_context(rng, prompt) if rng.random() < 0.25 else prompt).sentence


def _half_in_context(rng: random.Random, prompts: list[Prompt]) -> list[Prompt]:
    return [in_context(rng, prompt) if i % 2 else prompt for i, prompt in enumerate(prompts)]
