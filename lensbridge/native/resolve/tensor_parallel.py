"""Which tensors of a tensor-parallel model are in pieces: the styles, part by part of the model."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lensbridge.native.parts import AttentionPart, MLPPart, MoEPart, Role, StackPart
from lensbridge.native.pieces import Pieces, Sharding
from lensbridge.native.resolve.parallel_styles import STYLES, Side, is_split, refused
from lensbridge.tensors.layouts import Layout

_SPLIT_LAYOUTS = ("... m", "... (n ", "... (g ")
"""How the layouts begin that put whole heads one after another, so that pieces are heads too."""


def sharding_of(
    core: nn.Module, styles: dict[nn.Module, str] | None, stacks: Iterable[StackPart]
) -> Sharding | None:
    """Which tensors of a resolved model are in pieces; None where none is.

    Raises:
        LoadError: a module is split in a way that its part of the model does not allow.
    """
    if not styles:
        return None
    parameters: list[Any] = [p for one in styles for p in one.parameters(False)]
    meshes = [p.device_mesh for p in parameters if is_split(p)]
    if not meshes:
        return None
    wiring = _Wiring(core, styles, meshes[0])
    for stack in stacks:
        for block in stack.blocks:
            if block.repeat is not None:
                raise refused(core, [f"{block.path}: its layers share modules"])
            for attention in (block.attn, block.cross):
                if attention is not None:
                    wiring.attention(attention)
            wiring.feed_forward(block.mlp)
    return wiring.sharding()


@dataclass
class _Wiring:
    """Collects what is in pieces, part by part."""

    core: nn.Module
    styles: dict[nn.Module, str]
    mesh: Any
    inputs: dict[nn.Module, Pieces] = field(default_factory=dict)
    outputs: dict[nn.Module, Pieces] = field(default_factory=dict)
    kernels: set[nn.Module] = field(default_factory=set)

    def attention(self, part: AttentionPart) -> None:
        """Heads are split over the ranks, in q, k, v and the output alike, or nowhere."""
        modules = {"out": part.out.module}
        modules |= {letter: role.linear.module for letter, role in part.roles.items()}
        if not self._are_split(modules):
            return
        self._require_whole_heads(part)
        for role in part.roles.values():
            self._split(role.linear.module, "output", -1, role.linear.n_out)
        self._split(part.out.module, "input", -1, part.out.n_in)
        for norm, count in ((part.q_norm, part.n_heads), (part.k_norm, part.n_kv)):
            self._norm(norm, part, count)
        self._norm(part.v_norm, part, part.n_kv)
        self.kernels.add(part.module)

    def feed_forward(self, part: Any) -> None:
        """Neurons are split over the ranks, or nowhere."""
        if isinstance(part, MoEPart):
            part = part.shared
        if not isinstance(part, MLPPart):
            return
        roles = [role for role in (part.gate, part.up) if role is not None]
        modules = {f"in {i}": role.linear.module for i, role in enumerate(roles)}
        if not self._are_split({**modules, "down": part.down.module}):
            return
        if part.inner_norm is not None:
            self._refuse(part.inner_norm, "is a norm over neurons that are on different ranks")
        for role in roles:
            self._require_order(role)
            self._split(role.linear.module, "output", -1, role.linear.n_out)
        self._split(part.down.module, "input", -1, part.down.n_in)

    def sharding(self) -> Sharding:
        """What was collected, if it is all there is."""
        for module, style in self.styles.items():
            sides = STYLES[style].sides
            known = ("input" not in sides or module in self.inputs) and (
                "output" not in sides or module in self.outputs
            )
            if not known and style != "replicated_with_grad_allreduce":
                self._refuse(module, f"has style {style!r}, and nothing says what its pieces are")
        kernels = frozenset(self.kernels)
        return Sharding(self.mesh, self.inputs, self.outputs, kernels)

    def _are_split(self, modules: dict[str, nn.Module]) -> bool:
        """Whether a branch is split; refuses one that is in part."""
        split = {module: self._is_split(module) for module in modules.values()}
        if len(set(split.values())) > 1:
            odd = next(module for module, one in split.items() if not one)
            self._refuse(odd, "is whole, and other projections of its branch are split")
        return next(iter(split.values()))

    def _is_split(self, module: nn.Module) -> bool:
        return bool(module in self.styles and STYLES[self.styles[module]].sides)

    def _split(self, module: nn.Module, side: Side, axis: int, size: int) -> None:
        where = self.inputs if side == "input" else self.outputs
        where[module] = Pieces(self.mesh, axis, size)

    def _norm(self, norm: nn.Module | None, part: AttentionPart, count: int) -> None:
        """A norm of each head: every rank has those of its heads."""
        if norm is None:
            return
        if part.qk_norm_axes == "flat":
            self._refuse(norm, "is a norm over heads that are on different ranks")
        axis = -2 if part.qk_norm_axes == "positions_first" else -3
        self._split(norm, "input", axis, count)
        self._split(norm, "output", axis, count)

    def _require_whole_heads(self, part: AttentionPart) -> None:
        ranks = self.mesh.size()
        for what, count in (("heads", part.n_heads), ("key/value heads", part.n_kv)):
            if count % ranks:
                self._refuse(part.module, f"has {count} {what} for {ranks} ranks")
        for role in part.roles.values():
            self._require_order(role)
        extra = {
            "latents": part.latent is not None,
            "sinks": part.sinks is not None,
            "a position bias": part.position_bias is not None,
            "queries that no projection makes": part.q is None,
        }
        for what, there in extra.items():
            if there:
                self._refuse(part.module, f"has {what}, and its heads are on different ranks")

    def _require_order(self, role: Role) -> None:
        if not _is_in_order(role.layout):
            module = role.linear.module
            self._refuse(module, f"holds several projections side by side ({role.layout.pattern})")

    def _refuse(self, module: nn.Module, why: str) -> None:
        path = next((path for path, one in self.core.named_modules() if one is module), "")
        raise refused(self.core, [f"{path} {why}"])


def _is_in_order(layout: Layout) -> bool:
    return layout.pattern.startswith(_SPLIT_LAYOUTS)
