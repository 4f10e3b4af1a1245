"""Comparisons of tensors in checks. They are counted, because a check that makes none has failed.

Differences are relative to the larger of 1 and the largest expected value.
"""

import torch
from torch import Tensor

from lensbridge.errors import ConformanceError

INSENSITIVE = "should change"
"""Text of failures that may only mean that weights are too small or too similar for an edit to
show. They do not count if the check passes on a copy with other weights."""


class NotApplicable(Exception):  # noqa: N818 - nothing went wrong
    """The check does not apply to this model; the message is the reason."""


class Expect:
    """Comparisons with one tolerance.

    Args:
        tolerance: the largest allowed difference of two values of one computation.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.made = 0

    def same(self, point: str, found: Tensor, wanted: Tensor, meaning: str) -> None:
        """Require that they are equal bit for bit.

        Raises:
            ConformanceError: they are not.
        """
        self._shapes(point, found, wanted, meaning)
        if not torch.equal(found, wanted):
            raise ConformanceError(
                f"{point} should be, bit for bit, {meaning}; {_apart(found, wanted)}."
            )

    def close(
        self, point: str, found: Tensor, wanted: Tensor, meaning: str, slack: float = 1.0
    ) -> None:
        """Require that they are equal within `slack` times the tolerance, with -inf where expected.

        Raises:
            ConformanceError: they are not.
        """
        self._shapes(point, found, wanted, meaning)
        if difference(found, wanted) > slack * self.tolerance:
            raise ConformanceError(
                f"{point} should be {meaning}; {_apart(found, wanted)} (allowed "
                f"{slack * self.tolerance:.0e})."
            )

    def proportional(self, point: str, found: Tensor, wanted: Tensor, meaning: str) -> None:
        """Require that they are equal up to one positive factor.

        Raises:
            ConformanceError: no factor makes them equal.
        """
        self._shapes(point, found, wanted, meaning)
        factor = best_factor(found, wanted)
        if factor <= 0 or not self.are_close(found, wanted.double() * factor):
            raise ConformanceError(
                f"{point} should be {meaning}, up to a positive factor; with the best one, "
                f"{factor:.4g}, {_apart(found, wanted.double() * factor)} (allowed "
                f"{self.tolerance:.0e})."
            )

    def differ(self, point: str, found: Tensor, before: Tensor, cause: str) -> None:
        """Require that they differ by more than the tolerance.

        Raises:
            ConformanceError: they are not.
        """
        self._shapes(point, found, before, cause)
        if self.are_close(found, before):
            raise ConformanceError(f"{point} {INSENSITIVE} under {cause}; it does not.")

    def holds(self, point: str, fact: bool, meaning: str) -> None:
        """Require a fact that is no comparison of tensors.

        Raises:
            ConformanceError: the fact does not hold.
        """
        self.made += 1
        if not fact:
            raise ConformanceError(f"{point}: {meaning}.")

    def are_close(self, found: Tensor, wanted: Tensor) -> bool:
        """Whether two tensors of one shape are equal within the tolerance."""
        return difference(found, wanted) <= self.tolerance

    def _shapes(self, point: str, found: Tensor, wanted: Tensor, meaning: str) -> None:
        self.made += 1
        if found.shape != wanted.shape:
            raise ConformanceError(
                f"{point} should be {meaning}; its shape is {tuple(found.shape)}, and that of the "
                f"other is {tuple(wanted.shape)}."
            )
        if found.numel() == 0:
            self.made -= 1  # a comparison of empty tensors checks nothing


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the larger of 1 and the largest expected value."""
    if found.numel() == 0:
        return 0.0
    one, other = found.detach().double(), wanted.detach().double()
    finite = torch.isfinite(other)
    if not torch.equal(torch.isfinite(one), finite):
        return float("inf")
    apart = (one - other)[finite].abs()
    if not apart.numel():
        return 0.0
    return float(apart.max() / other[finite].abs().max().clamp(min=1.0))


def best_factor(found: Tensor, wanted: Tensor) -> float:
    """The factor of `wanted` that brings it nearest to `found`."""
    one, other = found.detach().double().flatten(), wanted.detach().double().flatten()
    return float(one @ other / (other @ other).clamp(min=1e-300))


def _apart(found: Tensor, wanted: Tensor) -> str:
    if not torch.equal(torch.isfinite(found), torch.isfinite(wanted)):
        return "they are not finite in the same places"
    largest = float((found.double() - wanted.double()).nan_to_num(0.0).abs().max())
    values = float(wanted.double().nan_to_num(0.0, 0.0, 0.0).abs().max())
    return f"they differ by up to {largest:.3g}, where values reach {values:.3g}"
