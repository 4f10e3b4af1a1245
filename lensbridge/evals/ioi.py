"""Indirect object identification: "Then, Tom and Mary went to the store. Tom gave the milk to".

Source: Wang et al. 2022, "Interpretability in the Wild"; the class and its placeholders are those
of TransformerLens.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lensbridge.errors import InputError
from lensbridge.evals.sentence_encoder import Prompts, SentenceEncoder
from lensbridge.evals.sentences import NAMES, NOUNS, SLOT, TEMPLATES, Pieces, Sample
from lensbridge.inputs.prompts import Encoded


class IOIDataset(Dataset[dict[str, Tensor]]):
    """Sentences whose next token is the name that occurred once (the indirect object).

    Names are kept if they are one token after a space; the others are in `dropped_names`. The
    corrupted prompts have as many tokens as the clean ones and differ only at names.

    A run takes the data set itself as its input, which is its clean prompts; its `logit_diff` is a
    metric of sweeps.

    Attributes:
        samples: the sentences.
        names: the names in use.
        dropped_names: the names that are not one token of the tokenizer.
    """

    def __repr__(self) -> str:
        return f"IOIDataset({len(self.samples)} sentences, {len(self.names)} names)"

    def __init__(
        self,
        tokenizer: Any,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        nouns: Mapping[str, Sequence[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ) -> None:
        """Draw sentences.

        Args:
            tokenizer: a HuggingFace tokenizer.
            templates: sentences with [A] the indirect object, [B] the subject, and the slots of
                `nouns`; they end with [A].
            names: the names to draw from, without the space in front.
            nouns: the words for each other slot.
            num_samples: how many sentences.
            symmetric: add to each sentence the one with its names swapped, right after it.
            prepend_bos: begin with BOS if the tokenizer has one.
            seed: seed of the draw; None: another draw each time. Python's own random state is not
                changed.

        Raises:
            InputError: fewer than two names are single tokens, or a template is malformed.
        """
        self.tokenizer = tokenizer
        self.templates = tuple(templates or self.get_default_templates())
        self.nouns = dict(nouns or self.get_default_nouns())
        self._encoder = SentenceEncoder(tokenizer, prepend_bos)
        self._check_templates()
        asked = tuple(dict.fromkeys(names or self.get_default_names()))
        self._id = {
            one: ids[0] for one in asked if len(ids := self._encoder.encode(f" {one}")) == 1
        }
        self.names = tuple(self._id)
        self.dropped_names = tuple(one for one in asked if one not in self._id)
        if len(self.names) < 2:
            raise InputError(
                f"At least two names must be single tokens of this tokenizer after a space; of "
                f"{len(asked)} names {len(self.names)} are. Pass other names=..."
            )
        draw = random.Random(seed)
        if symmetric and num_samples % 2:
            raise InputError(
                f"num_samples={num_samples} is odd, and symmetric sentences come in pairs."
            )
        drawn = [self._draw(draw) for _ in range(num_samples // 2 if symmetric else num_samples)]
        pairs = ((one, one.swapped()) for one in drawn)
        self.samples = [one for pair in pairs for one in pair] if symmetric else drawn

    @staticmethod
    def get_default_names() -> list[str]:
        """The names that are drawn from by default."""
        return NAMES.split()

    @staticmethod
    def get_default_templates() -> list[str]:
        """The templates that are drawn from by default."""
        return list(TEMPLATES)

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """The words for the other slots by default."""
        return {slot: list(words) for slot, words in NOUNS.items()}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The ids of a whole sentence, of its answer and of the wrong name."""
        sample = self.samples[index]
        ids, _ = self._encoder.tokens(sample.pieces)
        if ids[-1] != self._id[sample.io]:
            raise InputError(f"{sample.text!r} does not end with the token of {sample.io!r}.")
        answers = {"IO": self._id[sample.io], "S": self._id[sample.s]}
        whole = {"prompt": torch.tensor(ids)}
        return {**whole, **{name: torch.tensor([one]) for name, one in answers.items()}}

    def as_input(self) -> Encoded:
        """What a run takes of the data set: its clean prompts."""
        return self.clean.as_input()

    # --- what a circuit is studied with ------------------------------------------------------

    @cached_property
    def clean(self) -> Prompts:
        """The sentences without their answers."""
        return self._encoder.prompts([one.pieces for one in self.samples])

    @cached_property
    def corrupted(self) -> Prompts:
        """The same sentences with the second subject replaced by a third name (ABC).

        Then no name occurs twice, so the answer is not determined.

        Raises:
            InputError: there are only two names, so there is no third: use `flipped`.
        """
        if len(self.names) < 3:
            raise InputError("There are two names, and this needs a third. Use dataset.flipped.")
        return self._beside([one.with_third() for one in self.samples])

    @cached_property
    def flipped(self) -> Prompts:
        """The same sentences with the indirect object as the second subject.

        Then the answer is the other name.
        """
        return self._beside([one.with_other() for one in self.samples])

    def logit_diff(self, logits: Tensor, per_prompt: bool = False) -> Tensor:
        """The logit of the indirect object minus that of the subject, after each prompt.

        It is a metric of sweeps and patching: `metric=dataset.logit_diff`. To keep the number of
        each prompt there, pass `lambda logits: dataset.logit_diff(logits, per_prompt=True)` with
        `reduce="none"`. It is positive where the model gives the right name a higher logit.

        Args:
            logits: of a run on all prompts of the data set (clean, corrupted or flipped), padded
                on the right as they are.
            per_prompt: the difference of each prompt instead of the mean.

        Shapes: `[sample, pos, d_vocab]` -> scalar, or `[sample]` per prompt

        Raises:
            InputError: logits of other prompts, or not of every position.

        Example:
            >>> import lensbridge
            >>> from lensbridge.evals import IOIDataset
            >>> model = lensbridge.load("demo")
            >>> dataset = IOIDataset(model.tokenizer, num_samples=8, seed=0)
            >>> bool(dataset.logit_diff(model(dataset)) > 0)
            True
        """
        if logits.ndim != 3 or logits.shape[:2] != self.clean.tokens.shape:
            raise InputError(
                f"The prompts of this data set are {list(self.clean.tokens.shape)} (prompt, "
                f"position), and the logits have shape {list(logits.shape)}. Pass the logits of "
                "all positions of a run on the whole data set, padded on the right."
            )
        rows, end, io, s = (
            one.to(logits.device)
            for one in (
                torch.arange(len(self)),
                self.positions["end"],
                self.io_tokens,
                self.s_tokens,
            )
        )
        last = logits[rows, end]
        found = last[rows, io] - last[rows, s]
        return found if per_prompt else found.mean()

    @property
    def io_tokens(self) -> Tensor:
        """Ids of the right answers. Shapes: `[sample]`"""
        return torch.tensor([self._id[one.io] for one in self.samples])

    @property
    def s_tokens(self) -> Tensor:
        """Ids of the wrong names. Shapes: `[sample]`"""
        return torch.tensor([self._id[one.s] for one in self.samples])

    @cached_property
    def positions(self) -> dict[str, Tensor]:
        """The positions of the names in each row: `IO`, `S1`, `S2`; and `end`, the last token.

        Shapes: each `[sample]`
        """
        found: dict[str, list[int]] = {"IO": [], "S1": [], "S2": [], "end": []}
        for sample in self.samples:
            ids, places = self._encoder.tokens(sample.pieces)
            found["IO"].append(places["A"][0])
            found["S1"].append(places["B"][0])
            found["S2"].append(places["B"][-1])
            found["end"].append(len(ids) - 2)
        return {name: torch.tensor(where) for name, where in found.items()}

    # --- drawing -----------------------------------------------------------------------------

    def _check_templates(self) -> None:
        for one in self.templates:
            slots = SLOT.findall(one)
            unknown = set(slots) - {"A", "B", *self.nouns}
            if unknown:
                raise InputError(
                    f"The template {one!r} has the slots {sorted(unknown)}, for which nouns has no "
                    "words."
                )
            if not one.endswith(" [A]") or slots.count("A") < 2 or slots.count("B") < 2:
                raise InputError(
                    f"The template {one!r} must have [A] and [B] twice each, and end with [A] "
                    "after a space."
                )

    def _draw(self, draw: random.Random) -> Sample:
        template = draw.choice(self.templates)
        io, s, *more = draw.sample(self.names, min(3, len(self.names)))
        nouns = tuple((slot, draw.choice(list(words))) for slot, words in self.nouns.items())
        return Sample(template, io, s, more[0] if more else None, nouns)

    def _beside(self, sentences: Sequence[Pieces]) -> Prompts:
        """Prompts of changed sentences, whose tokens must have the positions of the clean ones."""
        found, mask = self._encoder.prompts(sentences), self.clean.mask
        if found.mask.shape != mask.shape or not torch.equal(found.mask, mask):
            raise InputError(
                "In these templates the number of tokens depends on the name; put a space in front "
                "of every [B]."
            )
        return found
