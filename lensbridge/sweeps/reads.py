"""Which positions of the logits a metric reads: the others need not be computed.

The metric itself is tried: its value stays the same if logits that it does not read become NaN or
noise. A metric that fails on such logits is taken to read everything.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lensbridge.sweeps.metric import Metrics


def positions_read(metrics: Metrics, logits: Tensor) -> list[int]:
    """The positions that the metrics read, in order.

    Shapes: logits `[batch, pos, d_vocab]`.
    """
    count = logits.shape[1]
    wanted = metrics.measure(logits)
    for some in _guesses(metrics, logits):
        if len(some) < count and _suffices(metrics, logits, some, wanted):
            return some
    return list(range(count))


def _guesses(metrics: Metrics, logits: Tensor) -> Iterator[list[int]]:
    yield [logits.shape[1] - 1]
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        try:
            values = [torch.as_tensor(metric(leaf)) for metric in metrics.functions.values()]
            total = torch.stack([value.float().sum() for value in values]).sum()
            (grad,) = torch.autograd.grad(total, leaf)
        except (RuntimeError, TypeError, ValueError):
            return  # not differentiable
    yield [int(i) for i in grad.abs().sum((0, 2)).nonzero()]


def _suffices(metrics: Metrics, logits: Tensor, some: Sequence[int], wanted: Tensor) -> bool:
    """Whether the metrics stay as they are if all other positions have other logits."""
    noise = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0)) * 50
    for filling in (torch.full_like(noise, torch.nan), noise):
        other = filling.to(logits).expand_as(logits).clone()
        other[:, some] = logits[:, some]
        try:
            found = metrics.measure(other)
        except (RuntimeError, ValueError, ArithmeticError):
            return False
        if not torch.equal(found, wanted):
            return False
    return True
