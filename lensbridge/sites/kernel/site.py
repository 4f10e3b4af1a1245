"""The site of a value inside an attention kernel."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lensbridge.native.settings import kernel_of
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.kernel.axes import KernelAxes
from lensbridge.sites.kernel.switch import VISIBLE_KERNELS, visible_kernel
from lensbridge.sites.kernel.tap import KernelTap, Role
from lensbridge.sites.site import Site


def _as_it_is(chain: Chain) -> Chain:
    return chain


@dataclass(frozen=True)
class KernelSite(Site):
    """A value inside one attention module's kernel."""

    module: nn.Module
    role: Role
    n_heads: int
    n_kv: int
    sinks: tuple[nn.Module, str] | None = None
    positions_first: bool = False
    through: Callable[[Chain], Chain] = _as_it_is
    """What a chain is made into before the kernel's values pass it."""

    @property
    def may_be_part(self) -> bool:
        return self.role in ("rot_q", "rot_k")

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            tap = call.around.get("attention")
            if tap is None:
                tap = call.around["attention"] = self._tap(call.input)
            assert isinstance(tap, KernelTap)
            tap.chains[self.role] = self.through(chain)

        return [Stage(self.module, "input", 9, act, around=True)]

    def _tap(self, given: Tensor) -> KernelTap:
        given = given.transpose(0, 1) if self.positions_first else given
        axes = KernelAxes(self.name, self.n_heads, self.n_kv, *given.shape[:2])
        return KernelTap(axes, given.dtype, self.sinks)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return None if kernel_of(root) in VISIBLE_KERNELS else visible_kernel(root)
