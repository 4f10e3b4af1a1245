"""The points inside one MLP or mixture of experts."""

from collections.abc import Iterator
from typing import Literal

from lensbridge.native.parts import FeedForward, MLPPart, MoEPart
from lensbridge.sites.experts import ChoiceSite, RouterSite
from lensbridge.sites.routing import routing_of
from lensbridge.sites.site import Site
from lensbridge.sites.wiring.index import ExpertGroup
from lensbridge.sites.wiring.placing import Placing


class FeedForwardWiring(Placing):
    """The sites of the MLP of one layer, or of its mixture of experts."""

    def sites(self, at: str, mlp: FeedForward) -> Iterator[Site]:
        """Every point but those inside experts; the names begin with `at`."""
        if isinstance(mlp, MoEPart):
            yield from self._mixture(at, mlp)
        elif isinstance(mlp, MLPPart):
            yield from self._neurons(at, mlp)

    def _neurons(self, at: str, mlp: MLPPart) -> Iterator[Site]:
        roles = {f"{at}hook_pre": mlp.gate or mlp.up}
        roles |= {f"{at}hook_pre_linear": mlp.up} if mlp.gate else {}
        for name, role in roles.items():
            yield self.projected(name, role, roles)
        yield self.input(f"{at}hook_post", mlp.inner_norm or mlp.down.module)

    def _mixture(self, at: str, moe: MoEPart) -> Iterator[Site]:
        info = self.info(f"{at}hook_router_logits", moe.router, "first product")
        yield RouterSite(info, moe.router, moe.module, moe.n_choices)
        if moe.shared is not None:
            yield from self._neurons(f"{at}shared.", moe.shared)
            yield self.input(f"{at}shared.hook_in", moe.shared.module)
            out, copied = f"{at}shared.hook_out", moe.shared.overwritten
            yield self.output(out, moe.shared.module, overwritten=copied)
        if moe.experts is None:
            return
        routing = routing_of(moe.experts, moe.router)
        module, side = routing.entry
        choices: tuple[tuple[str, Literal[0, 1]], ...]
        choices = (("hook_expert_indices", 0), ("hook_expert_weights", 1))
        for last, index in choices:
            info = self.info(f"{at}{last}", module, side, "the choices")
            yield ChoiceSite(info, routing, moe.module, index)

    def experts(self, at: str, moe: MoEPart, repeat: int | None) -> ExpertGroup | None:
        """The points inside experts, where they can be seen one by one.

        Args:
            at: the beginning of their names.
            moe: the mixture of experts.
            repeat: which call of the layer this is, where layers share their modules.
        """
        if moe.experts is None:
            return None
        where = f"inside {self.native.paths.get(moe.experts.module, '')}"
        routing = routing_of(moe.experts, moe.router)
        return ExpertGroup(at, moe.experts, routing, where, repeat)
