"""Landing: flights behind the last layer go through the head, several at once.

The head is as large as many layers, and slow on the few rows that one flight brings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lensbridge.patching.field import Field
from lensbridge.patching.prefix import same


@dataclass(frozen=True)
class Arrived:
    """A flight behind the last layer.

    Args:
        field: what all flights share.
        wanted: the positions that are read.
        control: whether the first rows patch nothing.
        rows: the stream at these positions.
        order: which cells they are, behind the control's.

    Shapes: rows `[control? + cell x batch, read, d_model]`.
    """

    field: Field
    wanted: Sequence[int]
    control: bool
    rows: Tensor
    order: Sequence[int]

    def fits_beside(self, others: "Sequence[Arrived]", room: int) -> bool:
        """Whether they can go through the head together, which has room for some positions."""
        together = (*others, self)
        shapes = {one.rows.shape[1:] for one in together}
        return len(shapes) == 1 and sum(one.rows[..., 0].numel() for one in together) <= room

    def logits(self, found: Tensor) -> list[Callable[[], Tensor]] | None:
        """Logits of each cell when they are asked for; None if the control fails.

        They are NaN at positions that are not read, and good until the next are asked for.

        Args:
            found: what the head makes of the rows.
        """
        base = self.field.base
        parts = list(found.split(base.batch))
        if self.control and not same(parts.pop(0), base.logits[:, self.wanted]):
            return None
        by_cell = dict(zip(self.order, parts, strict=True))
        return [partial(self.field.show, by_cell[i], self.wanted) for i in range(len(parts))]


def land(arrived: Sequence[Arrived]) -> list[list[Callable[[], Tensor]] | None]:
    """`Arrived.logits` of some flights of one sweep, which go through the head together."""
    base = arrived[0].field.base
    rows = torch.cat([one.rows for one in arrived])
    found = base.model(rows, start_at_layer=len(base.model.native.blocks))
    assert isinstance(found, Tensor)
    parts = found.split([len(one.rows) for one in arrived])
    return [one.logits(part) for one, part in zip(arrived, parts, strict=True)]
