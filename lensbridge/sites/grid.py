"""Points of a stack whose values natively have rows and columns: `[b, y, x, ...]`."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.composed import OuterSite
from lensbridge.sites.site import Site


@dataclass(frozen=True)
class GridChain:
    """A chain for a value on a grid, which is given its positions in one axis, row by row."""

    chain: Chain

    @property
    def edits(self) -> bool:
        """Whether any callback may change the value."""
        return self.chain.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Run the chain; what it gives, on the grid."""
        new = self.chain.run(value.flatten(1, 2), in_place=in_place)
        return None if new is None else new.reshape(value.shape)


@dataclass(frozen=True)
class GridSite(OuterSite):
    """A point of such a stack: with one axis of positions, as in all other models."""

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(map(self._in_one_axis, stages))

    def _in_one_axis(self, stage: Stage) -> Stage:
        def act(call: Call, chain: Chain) -> None:
            stage.act(call, GridChain(chain))

        return stage._replace(act=act, look=None)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


def grid_site(site: Site) -> GridSite:
    """A site of such a stack, with one axis of positions."""
    formula = "b y x ... -> b (y x) ..." + (
        "" if site.formula == "as it is" else f"; {site.formula}"
    )
    return GridSite(replace(site.info, formula=formula), site)
