"""Points of a stack whose values natively have positions before the batch: `[p, b, ...]`."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lensbridge.errors import HookError
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.composed import OuterSite
from lensbridge.sites.mapped import MappedChain
from lensbridge.sites.site import Site


def turned(value: Tensor) -> Tensor:
    """`[p, b, ...]` -> `[b, p, ...]`, and back."""
    return value.transpose(0, 1)


@dataclass(frozen=True)
class TurnedSite(OuterSite):
    """A point of such a stack: with the batch first, as in all other models."""

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(self._turned(i, stage) for i, stage in enumerate(stages))

    def _turned(self, i: int, stage: Stage) -> Stage:
        def act(call: Call, chain: Chain) -> None:
            self._count(i, call)
            stage.act(call, MappedChain(chain, turned, turned))

        return stage._replace(act=act, look=None)

    def _count(self, i: int, call: Call) -> None:
        """Refuse a second stream, which goes through the same modules (XLNet's `target_mapping`).

        Raises:
            HookError: the module is called again in one pass.
        """
        if (self.name, i) in call.memory:
            raise HookError(
                f"{self.name}: the model calls {type(call.module).__name__} once for each of two "
                "streams, so this point has two values. Run it without target_mapping."
            )
        call.memory[self.name, i] = True

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


def turned_site(site: Site) -> TurnedSite:
    """A site of such a stack, with the batch first."""
    formula = "p b ... -> b p ..." + ("" if site.formula == "as it is" else f"; {site.formula}")
    return TurnedSite(replace(site.info, formula=formula), site)
