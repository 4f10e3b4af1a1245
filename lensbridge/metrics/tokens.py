"""Metrics of one token, or of two: logits, probabilities, ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError, TokenError
from lensbridge.metrics.metric import Metric, MetricRun, ReadPosition, normal_position, read_at

Token: TypeAlias = "str | int | Sequence[str | int] | Tensor"
"""A token as text or id: one for all examples, or a list with one for each."""


@dataclass(frozen=True, repr=False)
class TokenMetric(Metric):
    """A metric of one token at one position of each example.

    Args:
        token: as text or id; a list has one for each example.
        position: which token of each text is read; the last one predicts what follows the text.
    """

    token: Token
    position: ReadPosition = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "token", normal_token(self.token))
        object.__setattr__(self, "position", normal_position(self.position))

    def resolved(self, run: MetricRun) -> "TokenMetric":
        """The metric with an id in place of text."""
        return replace(self, token=resolved_token(self.token, run))


@dataclass(frozen=True, repr=False)
class Logit(TokenMetric):
    """The logit of a token.

    Example:
        >>> import torch
        >>> from lensbridge.experiments import Logit
        >>> Logit(2)(torch.tensor([[[0.0, 1.0, 5.0]]]))
        tensor(5.)
    """

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The logit. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        return of_token(read_at(logits, self.position, run), self.token)


@dataclass(frozen=True, repr=False)
class LogProb(TokenMetric):
    """The log-probability of a token, in nats."""

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The log-probability. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        return of_token(read_at(logits, self.position, run).log_softmax(-1), self.token)


@dataclass(frozen=True, repr=False)
class Prob(TokenMetric):
    """The probability of a token."""

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The probability. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        return of_token(read_at(logits, self.position, run).softmax(-1), self.token)


@dataclass(frozen=True, repr=False)
class Rank(TokenMetric):
    """How many tokens are likelier than a token: 0 for the likeliest. It has no gradient."""

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The rank. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        read = read_at(logits, self.position, run)
        ranks = (read > of_token(read, self.token)[:, None]).sum(-1).float()
        return ranks.masked_fill(read.isnan().any(-1), torch.nan)


@dataclass(frozen=True, repr=False)
class LogitDiff(Metric):
    """The logit of a right token minus that of a wrong one.

    Args:
        correct: a token as text or id; a list has one for each example.
        wrong: the other token, likewise.
        position: which token of each text is read; the last one predicts what follows the text.

    Example:
        >>> import lensbridge
        >>> from lensbridge.experiments import LogitDiff
        >>> from lensbridge.interventions import Zero
        >>> model = lensbridge.load("demo")
        >>> cells = [Zero(("z", layer)) for layer in range(4)]
        >>> text = "The Eiffel Tower is in the city of"
        >>> model.sweep(text, cells, LogitDiff(" Paris", " Rome")).shape
        torch.Size([4])
    """

    correct: Token
    wrong: Token
    position: ReadPosition = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "correct", normal_token(self.correct))
        object.__setattr__(self, "wrong", normal_token(self.wrong))
        object.__setattr__(self, "position", normal_position(self.position))

    def resolved(self, run: MetricRun) -> "LogitDiff":
        """The metric with ids in place of texts."""
        correct, wrong = (resolved_token(one, run) for one in (self.correct, self.wrong))
        return replace(self, correct=correct, wrong=wrong)

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The difference. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        read = read_at(logits, self.position, run)
        return of_token(read, self.correct) - of_token(read, self.wrong)


def normal_token(token: Any) -> Any:
    """A token as it is stored: a text, an int, or a tuple with one for each example.

    Raises:
        InputError: something else.
    """
    if isinstance(token, Tensor) and not token.is_floating_point():
        token = token.tolist()
    if isinstance(token, str):
        return token
    if isinstance(token, Integral) and not isinstance(token, bool):
        return int(token)
    if isinstance(token, list | tuple) and token:
        several = tuple(normal_token(one) for one in token)
        if not any(isinstance(one, tuple) for one in several):
            return several
    raise InputError(
        f"A token is a text or an id, or a list with one for each example; not {token!r}."
    )


def resolved_token(token: Any, run: MetricRun) -> Any:
    """A token with ids in place of texts.

    Raises:
        TokenError: a text is several tokens.
        InputError: there is no tokenizer.
    """
    if isinstance(token, tuple):
        return tuple(resolved_token(one, run) for one in token)
    if isinstance(token, int):
        return token
    if run.tokens is None:
        raise InputError(
            f"The metric has the token {token!r} as text, and no tokenizer is known here: write "
            "its id, or call metric.bound(MetricRun(tokens=model.tokens))."
        )
    try:
        return run.tokens.to_single_token(token)
    except TokenError as error:
        raise TokenError(
            f"{error} A metric takes single tokens; model.answer_logprobs takes answers of several."
        ) from error


def of_token(values: Tensor, token: Any) -> Tensor:
    """The entry of a token in each row. Shapes: `[batch, d_vocab]` -> `[batch]`

    Raises:
        InputError: text without a tokenizer, a list of another length, or an id that there is not.
    """
    ids = resolved_token(token, MetricRun())
    batch, size = values.shape
    given = ids if isinstance(ids, tuple) else (ids,) * batch
    if len(given) != batch:
        raise InputError(
            f"The metric has {len(given)} tokens, one for each example, and the logits are of "
            f"{batch} examples."
        )
    wrong = [one for one in given if not 0 <= one < size]
    if wrong:
        raise TokenError(f"There is no token {wrong[0]}: the vocabulary has {size}.")
    index = torch.tensor(given, device=values.device)
    return values.gather(1, index[:, None])[:, 0]
