"""Induction scores and losses on repeated random words.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads".
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.demo.text import words
from lensbridge.demo.workflows.runs import as_logits, cached, largest, strings
from lensbridge.model import LensModel


@dataclass(frozen=True)
class Induction:
    """How each head attends on repeated random words, and how much lower the loss gets.

    Args:
        tokens: the first row, as text: BOS, then `period` words, twice.
        period: how many words are repeated.
        scores: mean attention from the second copy of a word to the word after its first copy.
        chance: loss of a uniform guess among the words.
        loss: loss of each prediction, averaged over rows.
        pattern: attention of the top head on the first row.

    Shapes: scores `[layer, head]`; loss `[2 * period]`, entry `j` predicts token `j + 1`; pattern
        `[query, key]`.
    Units: scores and pattern are probabilities; losses in nats.
    """

    tokens: tuple[str, ...]
    period: int
    scores: Tensor
    chance: float
    loss: Tensor
    pattern: Tensor

    @property
    def top(self) -> tuple[int, int]:
        """Layer and head of the highest score."""
        return largest(self.scores)

    @property
    def halves(self) -> tuple[float, float]:
        """Mean loss on the first and on the second copy, in nats."""
        first, second = self.loss.view(2, self.period).mean(1).tolist()
        return first, second


@torch.no_grad()
def score_induction(model: LensModel, rows: int = 16, period: int = 20, seed: int = 0) -> Induction:
    """Induction scores and losses on random words, repeated once.

    Args:
        model: the model.
        rows: how many sequences to average over.
        period: how many words, all different, before they repeat.
        seed: seed of the draw.
    """
    tokens = repeated_words(model, rows, period, seed)
    layers = range(model.cfg.n_layers)
    cache = cached(model, tokens, ["pattern"])
    scores = torch.stack([_stripe(cache["pattern", layer], period) for layer in layers])
    layer, head = largest(scores)
    loss = model(tokens, return_type="loss", loss_per_token=True)
    return Induction(
        tokens=strings(model, tokens[0]),
        period=period,
        scores=scores,
        chance=math.log(len(word_tokens(model))),
        loss=as_logits(loss).mean(0),
        pattern=cache["pattern", layer][0, head],
    )


def repeated_words(model: LensModel, rows: int, period: int, seed: int) -> Tensor:
    """BOS, then random words of the demo's grammar, then the same words again.

    No word occurs twice in a period, so that the position to attend to is unique.

    Shapes: `[rows, 1 + 2 * period]`
    """
    pool = word_tokens(model)
    draw = torch.Generator().manual_seed(seed)
    picks = [pool[torch.randperm(len(pool), generator=draw)[:period]] for _ in range(rows)]
    once = torch.stack(picks)
    opening = torch.full((rows, 1), model.tokenizer.bos_token_id)
    return torch.cat([opening, once, once], 1).to(model.device)


def word_tokens(model: LensModel) -> Tensor:
    """The words of the demo's grammar that occur inside a sentence.

    Shapes: `[word]`
    """
    return torch.tensor([model.to_single_token(word) for word in words() if word[0] == " "])


def _stripe(pattern: Tensor, period: int) -> Tensor:
    """Attention from the second copy of each word to the word after its first, `period - 1` back.

    Shapes: `[batch, head, query, key]` -> `[head]`
    """
    stripe = pattern.diagonal(offset=1 - period, dim1=-2, dim2=-1)
    return stripe[..., -period:].mean((0, -1))
