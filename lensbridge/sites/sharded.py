"""Sites on native tensors that are in pieces: put together to be read, split again to be written.

Every rank of a tensor-parallel model then sees the values of the whole model. A site that reads or
writes such a tensor communicates, so every rank has to run it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lensbridge.native.linear import Linear
from lensbridge.native.pieces import Pieces, Sharding
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.composed import OuterSite
from lensbridge.sites.heads import HeadInputSite, ResultSite
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.kernel.tap import Role
from lensbridge.sites.site import PointInfo, Site


def whole_site(site: Site, sharding: Sharding) -> Site:
    """The same site with the values of the whole model on every rank."""
    if isinstance(site, KernelSite):
        return _of_kernel(site, sharding)
    if isinstance(site, HeadInputSite):
        site = replace(site, pieces=sharding.outputs.get(site.projection))
    if isinstance(site, ResultSite):
        site = replace(site, out=LiveLinear(**vars(site.out)))
    if any(sharding.touches(stage.module) for stage in site.stages):
        return ShardedSite(_gathered(site, sharding), site, sharding)
    return site


def _gathered(site: Site, sharding: Sharding) -> PointInfo:
    return replace(site.info, where=f"{site.where}, gathered from {sharding.ranks} ranks")


# --- the inputs and outputs of modules -----------------------------------------------------------


class WholeCall(Call):
    """A call of a module as on a single rank: it shows whole tensors and takes whole ones."""

    __slots__ = ("_input", "_native", "_result", "_sharding")

    def __init__(self, native: Call, sharding: Sharding) -> None:
        super().__init__(native.module, native.args, native.kwargs, native.memory, native.output)
        self._notes, self._around, self._extras = native.notes, native.around, native.extras
        self._native = native
        self._sharding = sharding
        self._input: Tensor | None = None
        self._result: Tensor | None = None

    @property
    def input(self) -> Tensor:
        """The activation that the module is called with."""
        pieces = self._sharding.inputs.get(self.module)
        if pieces is None:
            return self._native.input
        if self._input is None:
            self._input = pieces.whole(self._native.input)
        return self._input

    def replace_input(self, value: Tensor) -> None:
        """Call the module with another activation."""
        pieces = self._sharding.inputs.get(self.module)
        self._input, self.replaced = value, True
        self._native.replace_input(value if pieces is None else pieces.mine(value))

    @property
    def result(self) -> Tensor:
        """The activation that the module returns."""
        pieces = self._sharding.outputs.get(self.module)
        if pieces is None:
            return self._native.result
        if self._result is None:
            self._result = pieces.whole(self._native.result)
        return self._result

    def replace_result(self, value: Tensor) -> None:
        """Return another activation in the same form."""
        pieces = self._sharding.outputs.get(self.module)
        self._result, self.replaced = value, True
        self._native.replace_result(value if pieces is None else pieces.mine(value))

    def connect(self, phase: str) -> None:
        """Let gradients go through the whole tensor where it was read and not replaced."""
        read = self._input if phase == "input" else self._result
        if read is None or self.replaced or not read.requires_grad:
            return
        (self.replace_input if phase == "input" else self.replace_result)(read)


@dataclass(frozen=True)
class ShardedSite(OuterSite):
    """A point on modules whose inputs or outputs are in pieces."""

    sharding: Sharding

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(self._whole(stage) for stage in stages)

    def _whole(self, stage: Stage) -> Stage:
        if not self.sharding.touches(stage.module):
            return stage
        split = self.sharding.inputs if stage.phase == "input" else self.sharding.outputs

        def act(call: Call, chain: Chain) -> None:
            whole = WholeCall(call, self.sharding)
            stage.act(whole, chain)
            whole.connect(stage.phase)

        look = None if stage.module in split else stage.look
        return stage._replace(act=act, look=look)


@dataclass(frozen=True)
class LiveLinear(Linear):
    """A projection whose weights are put together with their graph, for use inside a run."""

    def weight(self) -> Tensor:
        """Shapes: `[in, out]`"""
        stored = self._together("weight")
        assert stored is not None
        return stored if self.transposed else stored.mT

    def bias(self) -> Tensor:
        """Shapes: `[out]`. Zeros where the module has none."""
        stored = self._together("bias")
        return self.weight().new_zeros(self.n_out) if stored is None else stored

    def _together(self, name: str) -> Tensor | None:
        stored: Any = self.module._parameters.get(name)
        return stored.full_tensor() if hasattr(stored, "full_tensor") else stored


# --- attention kernels ---------------------------------------------------------------------------

_HEADS: dict[Role, int] = {"rot_q": -2, "rot_k": -2, "z": -2, "scores": -3, "pattern": -3}
"""Which axis of a kernel's value is the head, counted from the last."""


class WholeChain:
    """A chain for a value of which each rank has some of the heads."""

    def __init__(self, chain: Chain, pieces: Pieces) -> None:
        self.chain = chain
        self.pieces = pieces

    @property
    def edits(self) -> bool:
        """Whether any callback may change the value."""
        return self.chain.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Run the chain on the value of all heads."""
        whole = self.pieces.whole(value)
        new = self.chain.run(whole, in_place=in_place)
        if new is None and not whole.requires_grad:
            return None
        return self.pieces.mine(whole if new is None else new)


def _of_kernel(site: KernelSite, sharding: Sharding) -> Site:
    if site.module not in sharding.kernels:
        return site
    count = site.n_kv if site.role == "rot_k" else site.n_heads
    pieces = Pieces(sharding.mesh, _HEADS[site.role], count)
    ranks = sharding.ranks
    return replace(
        site,
        info=_gathered(site, sharding),
        n_heads=site.n_heads // ranks,
        n_kv=site.n_kv // ranks,
        through=_through(pieces),
    )


def _through(pieces: Pieces) -> Callable[[Chain], Chain]:
    return lambda chain: WholeChain(chain, pieces)
