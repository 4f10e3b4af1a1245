"""What the analyses share: runs of the model, and the right and wrong answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.demo.text import Prompt
from lensbridge.model import LensModel


@dataclass(frozen=True)
class Answers:
    """The right and the wrong next token of each prompt, or of one prompt for every row.

    Shapes: both `[batch]` or `[1]`, token ids.
    """

    right: Tensor
    wrong: Tensor

    def difference(self, logits: Tensor) -> Tensor:
        """The right token's logit minus the wrong one's, at the last position.

        Shapes: `[batch, pos, d_vocab]` -> `[batch]`
        """
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, -1, self.right] - logits[rows, -1, self.wrong]


def answers_of(model: LensModel, prompts: Sequence[Prompt]) -> Answers:
    """The answers as token ids.

    Raises:
        TokenError: an answer that is not one token.
    """
    right = [model.to_single_token(prompt.answer) for prompt in prompts]
    wrong = [model.to_single_token(prompt.rival) for prompt in prompts]
    return Answers(*(torch.tensor(ids, device=model.device) for ids in (right, wrong)))


def as_logits(result: object) -> Tensor:
    """The result of a run as a tensor: logits, or a loss for each token."""
    assert isinstance(result, Tensor)
    return result


def cached(model: LensModel, given: Any, names: Sequence[str], **how: Any) -> ActivationCache:
    """The activations of one run."""
    _, cache = model.run_with_cache(given, names_filter=list(names), **how)
    assert isinstance(cache, ActivationCache)
    return cache


def strings(model: LensModel, ids: Tensor) -> tuple[str, ...]:
    """Each token of one row as text."""
    return tuple(model.to_single_str_token(int(one)) for one in ids)


def largest(grid: Tensor) -> tuple[int, int]:
    """Row and column of the largest value."""
    row, column = divmod(int(grid.argmax()), grid.shape[1])
    return row, column
