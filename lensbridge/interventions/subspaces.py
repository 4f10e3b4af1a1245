"""Interchanges of a subspace, and moves in a random direction that are as long."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.interventions.exchange import Swap, blended
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import SourceValues

Exchange: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Vectors of base and source -> the edited ones. Shapes: `[example, pos, ..., d]` each."""


@dataclass(frozen=True, eq=False, repr=False)
class Exchanged(Swap):
    """An interchange that a function of both values computes."""

    by: Exchange = lambda here, there: there

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        assert given is not None
        there, inside, _ = given.paired(region, self.other_positions)
        return blended(region, self.by(region.value, there), inside)


def within(basis: Tensor) -> Exchange:
    """The interchange of a subspace."""

    def exchange(here: Tensor, there: Tensor) -> Tensor:
        wide = basis.to(torch.promote_types(here.dtype, torch.float32))
        change = ((there - here).to(wide.dtype) @ wide) @ wide.T
        return (here + change).to(here.dtype)

    return exchange


def as_far(basis: Tensor, generator: torch.Generator) -> Exchange:
    """A move in a random direction, as far as the interchange of a subspace."""

    def move(here: Tensor, there: Tensor) -> Tensor:
        size = ((there - here) @ basis.to(here)).norm(dim=-1, keepdim=True)
        drawn = torch.randn(here.shape, generator=generator).to(here)
        return here + size * drawn / drawn.norm(dim=-1, keepdim=True)

    return move
