"""What acts on the logits of each step: a penalty for tokens that occurred, and a progress bar."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.steps import is_told, tell_step


class FrequencyPenalty:
    """Takes `penalty` off a token's logit for each time it occurs in the row so far.

    It acts after the temperature in TransformerLens's `sample_logits` and before it in
    HuggingFace's list, hence the factor. At temperature 0 it does nothing, there as here.

    Args:
        penalty: in logits.
        temperature: that the logits are divided by afterwards.
        mask: `[batch, pos]` of the prompt: padding is not counted. None where there is none.
    """

    def __init__(self, penalty: float, temperature: float, mask: Tensor | None = None) -> None:
        self.amount = penalty * temperature
        self.mask = mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        real = torch.ones_like(input_ids, dtype=scores.dtype)
        if self.mask is not None:
            prompt = self.mask.repeat_interleave(real.shape[0] // self.mask.shape[0], dim=0)
            real[:, : prompt.shape[1]] = prompt.to(real)
        counts = torch.zeros_like(scores).scatter_add_(1, input_ids, real)
        return scores - self.amount * counts


class Progress:
    """A progress bar on stderr that moves once a step, shown if it takes more than a second.

    Args:
        total: steps at most.
        shown: whether the bar is shown; who waits for steps is told them anyway.
    """

    def __init__(self, total: int, shown: bool = True) -> None:
        from tqdm.auto import tqdm

        self.total, self.done = total, 0
        self.bar = tqdm(
            total=total, desc="generating", unit="tok", leave=False, delay=1, disable=not shown
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.done += 1
        tell_step(self.done, self.total)
        self.bar.update()
        return scores

    def __del__(self) -> None:
        self.bar.close()


def logits_processors(
    given: Any,
    freq_penalty: float,
    temperature: float,
    verbose: bool,
    total: int,
    mask: Tensor | None = None,
) -> list[Any]:
    """The user's logits processors and ours.

    Raises:
        InputError: a negative penalty.
    """
    if freq_penalty < 0:
        raise InputError(f"freq_penalty is 0 or more, not {freq_penalty}.")
    found = list(given or [])
    if freq_penalty:
        found.append(FrequencyPenalty(freq_penalty, temperature, mask))
    if verbose or is_told():
        found.append(Progress(total, verbose))
    return found
