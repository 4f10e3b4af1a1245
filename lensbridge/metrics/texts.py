"""Metrics of whole predictions: divergence from another run, and the loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.metrics.metric import (
    Metric,
    MetricRun,
    ReadPosition,
    normal_position,
    read_at,
    wide,
)
from lensbridge.tensors.loss import lm_cross_entropy_loss
from lensbridge.tensors.positions import padded


@dataclass(frozen=True, eq=False, repr=False)
class KL(Metric):
    """How far the predictions are from those of another run: KL(other run || this run), in nats.

    Args:
        reference: logits of the other run, `[batch, pos, d_vocab]` of the same texts, or
            `[batch, d_vocab]` of the position that is read. None: the same input without the edits.
        position: which token of each text is read; None: the mean over all tokens.
    """

    reference: Tensor | None = None
    position: ReadPosition = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "position", normal_position(self.position, everywhere=True))
        if self.reference is not None and not isinstance(self.reference, Tensor):
            raise InputError("reference is a tensor of logits, or None for the run without edits.")

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The divergence. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        other = self._reference(logits, run)
        if self.position is None:
            real = padded(run.mask, logits.shape[1])
            return _mean(divergence(other, logits), real)
        here = read_at(logits, self.position, run)
        if other.ndim == 3:
            other = read_at(other, self.position, run)
        return divergence(other, here)

    def _reference(self, logits: Tensor, run: MetricRun) -> Tensor:
        given = self.reference
        if given is None:
            if run.clean is None:
                raise InputError(
                    "KL() compares with the run without edits, which is not known here. Pass its "
                    "logits: KL(logits)."
                )
            given = run.clean()
        at_one = given.ndim == 2 and self.position is not None
        wanted = logits[:, 0].shape if at_one else logits.shape
        if given.shape != wanted:
            raise InputError(
                f"The reference of KL has shape {list(given.shape)}, and the logits have "
                f"{list(logits.shape)}: it has to be of the same texts."
            )
        return wide(given.detach().to(logits.device))


def divergence(other: Tensor, here: Tensor) -> Tensor:
    """KL(other || here) of logits. Shapes: `[..., d_vocab]` twice -> `[...]`"""
    log_p, log_q = other.log_softmax(-1), here.log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.exp() == 0, torch.zeros_like(terms), terms).sum(-1)


@dataclass(frozen=True, repr=False)
class Loss(Metric):
    """The next-token loss of each text, in nats: the mean over its tokens.

    The mean over examples is the loss that `forward` gives, over all tokens of the batch: a long
    text counts more than a short one.
    """

    def of(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The loss, reduced. Shapes: `[batch, pos, d_vocab]` -> `[]` or `[batch]`"""
        if self.reduce != "mean":
            return super().of(logits, run)
        return lm_cross_entropy_loss(logits, *self._texts(logits, run))

    def examples(self, logits: Tensor, run: MetricRun) -> Tensor:
        """The loss of each text. Shapes: `[batch, pos, d_vocab]` -> `[batch]`"""
        ids, mask = self._texts(logits, run)
        losses = lm_cross_entropy_loss(logits, ids, mask, per_token=True)
        counted = ids[:, 1:] != -100
        if mask is not None:
            counted = counted & mask[:, 1:].bool() & mask[:, :-1].bool()
        return _mean(losses, counted.to(losses.device))

    def _texts(self, logits: Tensor, run: MetricRun) -> tuple[Tensor, Any]:
        if run.ids is None:
            raise InputError(
                "Loss is of the ids that were run, which are not known here: bind it to the run, "
                "metric.bound(MetricRun(ids=ids, mask=mask)), or use model.loss_fn."
            )
        return run.ids, run.mask


def _mean(values: Tensor, real: Tensor | None) -> Tensor:
    """The mean over the real ones of each row. Shapes: `[batch, n]` twice -> `[batch]`"""
    if real is None:
        return values.mean(-1)
    real = real.to(values.device)
    return values.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)
