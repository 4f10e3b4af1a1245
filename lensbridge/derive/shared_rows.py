"""Attention kernels of one key head whose queries are in one row (SantaCoder, StarCoder)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SharedRows:
    """Queries of all heads in one row, which one product multiplies with the only key head.

    Args:
        first: how many parts the row has: heads, or positions.
        turned: whether these are positions.
    """

    first: int
    turned: bool

    @classmethod
    def of(cls, product: Tensor, scores: Tensor) -> "SharedRows | None":
        """How such a product holds the heads, if it is one."""
        if product.ndim != 3 or scores.ndim != 4 or product.shape[::2] != scores.shape[::3]:
            return None
        first, second = scores.shape[1:3]
        if product.shape[1] != first * second:
            return None
        return cls(first, turned=first == scores.shape[3] != second)

    def apart(self, rows: Tensor) -> Tensor:
        """Shapes: `[b, (h p), d]` or `[b, (p h), d]` -> `[b, h, p, d]`."""
        parts = rows.unflatten(1, (self.first, -1))
        return parts.transpose(1, 2) if self.turned else parts
