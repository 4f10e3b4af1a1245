"""Metric: what all declared metrics share, and how one is bound to a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.tokens import Tokens
from lensbridge.tensors.position_forms import as_positions, by_row
from lensbridge.tensors.positions import columns_of_tokens, padded, row_has

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


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        said = [
            (one.name, vars(self)[one.name], one.default)
            for one in sorted(fields(self), key=lambda one: bool(one.kw_only))
        ]
        told = [
            f"{value!r}" if default is MISSING else f"{name}={_shown(value)}"
            for name, value, default in said
            if isinstance(value, Tensor) or value != default
        ]
        return f"{type(self).__name__}({', '.join(told)})"

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


def _shown(value: Any) -> str:
    return f"tensor of {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


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
    if isinstance(position, tuple) and len(position) != batch:
        raise InputError(
            f"position has {len(position)} entries, one for each example, and the logits are of "
            f"{batch}."
        )
    asked = torch.tensor(position).expand(batch)
    real = padded(run.mask, length)
    sizes = torch.full((batch,), length) if real is None else real.sum(-1).cpu()
    _check_within(asked, sizes)
    tokens = torch.where(asked < 0, asked + sizes, asked)
    columns = tokens if real is None else columns_of_tokens(real, tokens[:, None])[:, 0]
    return logits[torch.arange(batch, device=logits.device), columns.to(logits.device)]


def _check_within(asked: Tensor, sizes: Tensor) -> None:
    for row, (position, size) in enumerate(zip(asked.tolist(), sizes.tolist(), strict=True)):
        if not -size <= position < size:
            raise InputError(f"position={position}: {row_has(row, size)}.")


def normal_position(position: Any, everywhere: bool = False) -> Any:
    """A position as it is stored: an int, a tuple with one for each example, or None for all.

    Raises:
        InputError: something else.
    """
    if position is None and everywhere:
        return None
    with suppress(InputError):
        found = as_positions(position, "position")
        if isinstance(found, int | str):
            return -1 if found == "last" else found
        if by_row(found) and all(len(row) == 1 for row in found):
            return tuple(one for (one,) in found)
        if isinstance(found, tuple) and not by_row(found):
            return found
    rest = ", or None for all tokens" if everywhere else ""
    raise InputError(
        f"position is an int, 'last', or a list with one int for each example{rest}; not "
        f"{position!r}."
    )
