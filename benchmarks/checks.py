"""Equal results first: a benchmark that compares unequal work says nothing."""

from collections.abc import Mapping

import torch
from torch import Tensor


class UnequalResultsError(AssertionError):
    """Two contenders did not compute the same thing."""


def require_equal(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Raise unless two tensors agree bit for bit."""
    if not torch.equal(ours, theirs):
        raise UnequalResultsError(f"{what}: not bit-identical")


def require_close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Raise unless two tensors agree within a tolerance, where ours is finite (masked scores)."""
    if ours.shape != theirs.shape:
        raise UnequalResultsError(f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    seen = ours.isfinite()
    if not torch.allclose(ours[seen], theirs[seen], atol=tolerance, rtol=tolerance):
        worst = float((ours[seen] - theirs[seen]).abs().max())
        raise UnequalResultsError(f"{what}: differs by {worst:.1e}")


def require_same_cache(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], least: int
) -> None:
    """Raise unless the points that two caches share agree, and there are at least `least`."""
    shared = [name for name in ours if name in theirs]
    if len(shared) < least:
        raise UnequalResultsError(f"only {len(shared)} of {len(ours)} points in both caches")
    for name in shared:
        require_close(ours[name], theirs[name], name)
