"""Statistics over examples: standard errors, bootstrap intervals, sign-flip tests.

Functions work on the last axis. Each draws from its own generator, so that a seed gives the same
numbers on every device, whatever ran before.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lensbridge.errors import InputError

Statistic = Literal["mean", "median"]
"""What is computed over the examples of a cell."""

Alternative = Literal["two-sided", "greater", "less"]
"""Which effects count as extreme."""

EXACT_UP_TO = 12
MOST_NUMBERS = 2**22
"""Statistics of resamples that are held at once; torch.quantile takes 2^24 at most."""

CHUNK = 64
"""Resamples that are held at once, so that memory does not grow with their number."""


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean, with n - 1 in the variance; NaN for one example.

    Shapes: `[..., example]` -> `[...]`
    """
    n = values.shape[-1]
    if n < 2:
        return torch.full_like(values[..., 0], torch.nan)
    return values.std(dim=-1) / n**0.5


def bootstrap_interval(
    values: Tensor, n_resamples: int, seed: int, confidence: float, statistic: Statistic
) -> tuple[Tensor, Tensor]:
    """Percentile interval of a statistic, from examples drawn with replacement.

    Shapes: `[..., example]` -> two of `[...]`
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.

    Raises:
        InputError: no resamples, a confidence outside 0 to 1, or an unknown statistic.
    """
    if n_resamples < 1 or not 0 < confidence < 1:
        raise InputError(
            f"n_resamples is at least 1 and confidence between 0 and 1; got {n_resamples} and "
            f"{confidence}."
        )
    if statistic not in ("mean", "median"):
        raise InputError(f"statistic is 'mean' or 'median', not {statistic!r}.")
    n, generator = values.shape[-1], torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (n_resamples, n), generator=generator).to(values.device)
    ends, tail = values.new_empty(2, *values.shape[:-1]), (1 - confidence) / 2
    tails = values.new_tensor([tail, 1 - tail])
    cells = values.reshape(-1, n).split(max(1, MOST_NUMBERS // n_resamples))
    for part, some in zip(ends.view(2, -1).split(len(cells[0]), dim=1), cells, strict=True):
        resampled = torch.stack([_statistic(some[:, examples], statistic) for examples in drawn])
        part.copy_(resampled.quantile(tails, dim=0))
    return ends[0], ends[1]


def _statistic(values: Tensor, statistic: Statistic) -> Tensor:
    return values.mean(-1) if statistic == "mean" else values.quantile(0.5, dim=-1)


def sign_flip_pvalue(
    values: Tensor, n_permutations: int, seed: int, alternative: Alternative
) -> Tensor:
    """How often the mean is at least as large when the sign of each example is random.

    All `2^n` choices of signs for up to 12 examples. Above that, random ones together with the
    observed one, so that no p-value is 0.

    Shapes: `[..., example]` -> `[...]`
    Source: the one-sample permutation test (Fisher, The Design of Experiments, section 21).

    Raises:
        InputError: no permutations, or an unknown alternative.
    """
    if alternative not in ("two-sided", "greater", "less"):
        raise InputError(f"alternative is 'two-sided', 'greater' or 'less', not {alternative!r}.")
    if n_permutations < 1:
        raise InputError(f"n_permutations is at least 1, not {n_permutations}.")
    n = values.shape[-1]
    observed = _extremity(values.mean(-1), alternative)
    near = observed - 1e-9 * observed.abs().clamp(min=1e-30) - _rounding(values)
    count = torch.zeros_like(observed)
    total = 0
    for signs in _signs(n, n_permutations, seed):
        means = (values.unsqueeze(-2) * signs.to(values)).mean(-1)
        count += (_extremity(means, alternative) >= near.unsqueeze(-1)).sum(-1).to(count)
        total += len(signs)
    drawn = n > EXACT_UP_TO
    return ((count + drawn) / (total + drawn)).masked_fill(observed.isnan(), torch.nan)


def _rounding(values: Tensor) -> Tensor:
    """How far sums in another order may differ: the observed choice must count as extreme."""
    return values.abs().mean(-1) * torch.finfo(values.dtype).eps * 4


def _extremity(means: Tensor, alternative: Alternative) -> Tensor:
    if alternative == "two-sided":
        return means.abs()
    return means if alternative == "greater" else -means


def _signs(n: int, n_permutations: int, seed: int) -> Iterator[Tensor]:
    """Shapes: chunks of `[choice, example]`, of 1 and -1."""
    if n <= EXACT_UP_TO:
        bits = torch.arange(2**n).unsqueeze(-1) >> torch.arange(n)
        yield from ((bits & 1) * 2 - 1).split(CHUNK)
        return
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n_permutations, CHUNK):
        rows = min(CHUNK, n_permutations - start)
        yield torch.randint(2, (rows, n), generator=generator) * 2 - 1
