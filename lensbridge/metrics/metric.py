"""Metric: what all declared metrics share, and how one is bound to a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.tokens import Tokens
from lensbridge.tensors.positions import padded, token_positions
from lensbridge.tensors.slices import RowColumns

Reduction: TypeAlias = Literal["mean", "sum", "none"]
"""What becomes of the numbers of the examples: their mean, their sum, or each of them."""

ReadPosition: TypeAlias = "int | Literal['last'] | Sequence[int] | None"
"""The token of each text whose prediction is read: one for all, or a list with one for each
example. Negative ones count from the end."""


@dataclass(frozen=True, eq=False)
class MetricRun:
    """What a metric may have to know of a run besides its logits.

    Args:
        tokens: the tokenizer; None: tokens are ids.
        ids: `[batch, pos]` that were run, for a loss.
        mask: `[batch, pos]`, 1 for tokens, 0 for padding; None: nothing is padding.
        clean: gives the logits of the same input without edits.
    """

    tokens: Tokens | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    clean: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Metric(ABC):
    """One number for each example of a run, from its logits.

    A metric is called with logits wherever a function of logits is taken. Tokens that are given as
    text, padding and the clean run are known after `bound`, which every tool of lensbridge calls.

    Args:
        reduce: what becomes of the numbers of the examples.
    """

    reduce: Reduction = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        if self.reduce not in ("mean", "sum", "none"):
            raise InputError(f"reduce is 'mean', 'sum' or 'none', not {self.reduce!r}.")

    def __call__(self, logits: Tensor) -> Tensor:
        """The metric of logits `[batch, pos, d_vocab]`.

        Raises:
            InputError: it has to be bound to a run first.
        """
        return self.of(logits, MetricRun())

    def of(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The metric of the logits of a run, reduced. Shapes: `[batch, pos, d_vocab]` -> `[]` or
        `[batch]`"""
        if logits.ndim != 3:
            raise InputError(
                f"A metric takes logits [batch, pos, d_vocab], not {list(logits.shape)}."
            )
        values = self.examples(wide(logits), run)
        if self.reduce == "none":
            return values
        return values.mean() if self.reduce == "mean" else values.sum()

    @abstractmethod
    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """One number for each example. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""

    def bound(self, run: MetricRun) -> "BoundMetric":
        """The metric as a function of the logits of a run.

        Args:
            run: its tokenizer, ids and mask.

        Raises:
            TokenError: a text is not one token.
        """
        return BoundMetric(self.resolved(run), run)

    def resolved(self, run: MetricRun) -> "Metric":
        """The metric with ids in place of texts."""
        return self

    def reduced(self, reduce: Reduction) -> "Metric":
        """The same metric with another reduction."""
        return replace(self, reduce=reduce)


@dataclass(frozen=True, eq=False)
class BoundMetric:
    """A metric of one run, whose tokens and padding are known: a function of its logits."""

    metric: Metric
    run: MetricRun

    def __call__(self, logits: Tensor) -> Tensor:
        return self.metric.of(logits, self.run)

    @property
    def keeps_examples(self) -> bool:
        """Whether it gives a number for each example."""
        return self.metric.reduce == "none"

    def reduced(self, reduce: Reduction) -> "BoundMetric":
        """The same metric with another reduction."""
        return BoundMetric(self.metric.reduced(reduce), self.run)


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 or better."""
    return logits if logits.dtype == torch.float64 else logits.float()


def read_at(logits: Tensor, position: ReadPosition, run: MetricRun) -> Tensor:
    """The logits at one position of each example.

    Shapes: `[batch, pos, d_vocab]` -> `[batch, d_vocab]`

    Raises:
        InputError: an example has no such token, or a list of another length.
    """
    batch, length = logits.shape[:2]
    asked: Any = position
    if isinstance(position, tuple):
        if len(position) != batch:
            raise InputError(
                f"position has {len(position)} entries, one for each example, and the logits are "
                f"of {batch}."
            )
        asked = torch.tensor(position)[:, None]
    columns = token_positions(asked, padded(run.mask, length), "tokens", "position")
    if isinstance(columns, RowColumns):
        return columns.of(logits, 1, 0)[:, 0]
    if isinstance(columns, Tensor):
        _check_within(columns, length)
        return logits[torch.arange(batch, device=logits.device), columns[:, 0].to(logits.device)]
    _check_within(torch.tensor([columns]), length)
    return logits[:, columns]  # type: ignore[index]


def _check_within(columns: Tensor, length: int) -> None:
    wrong = columns[(columns < -length) | (columns >= length)]
    if len(wrong):
        raise InputError(f"position={int(wrong[0])}: the texts have {length} tokens.")


def normal_position(position: Any, everywhere: bool = False) -> Any:
    """A position as it is stored: an int, a tuple with one for each example, or None for all.

    Raises:
        InputError: something else.
    """
    if position is None and everywhere:
        return None
    if isinstance(position, str) and position == "last":
        return -1
    if isinstance(position, Tensor):
        position = position.tolist()
    if isinstance(position, Integral) and not isinstance(position, bool):
        return int(position)
    if isinstance(position, list | tuple) and all(isinstance(one, Integral) for one in position):
        return tuple(map(int, position))
    rest = ", or None for all tokens" if everywhere else ""
    raise InputError(
        f"position is an int, 'last', or a list with one int for each example{rest}; not "
        f"{position!r}."
    )
