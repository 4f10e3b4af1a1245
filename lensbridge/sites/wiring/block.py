"""The points of one layer: both its ends, and what its branches read and add.

What is inside attention and inside MLPs is in `attention.py` and `feed_forward.py`.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    FeedForward,
    MixerPart,
    MLPPart,
    MoEPart,
    ResolvedModel,
    StackPart,
)
from lensbridge.sites.call import Phase
from lensbridge.sites.composed import BranchInputSite, FlatSite
from lensbridge.sites.derived import SumSite
from lensbridge.sites.dropout import DroppedSite, DroppedSumSite, drops_after, members_of
from lensbridge.sites.heads import HeadInputSite
from lensbridge.sites.pair import PairSite
from lensbridge.sites.products import with_products
from lensbridge.sites.site import OutputSite, SharedInputSite, Site
from lensbridge.sites.wiring.attention import AttentionWiring
from lensbridge.sites.wiring.feed_forward import FeedForwardWiring
from lensbridge.sites.wiring.index import ExpertGroup
from lensbridge.sites.wiring.placing import Placing

_FLATTENED = ("hook_resid_mid", "hook_mlp", "mlp.", "ln2", "ln2_post")


class BlockWiring(Placing):
    """The sites of one layer, whose names begin with `at`."""

    def __init__(self, native: ResolvedModel, at: str, block: BlockPart, stack: StackPart) -> None:
        super().__init__(native)
        self.at = at
        self.block = block
        self.attention = AttentionWiring(native, block, stack)
        self.feed_forward = FeedForwardWiring(native)

    def sites(self) -> Iterator[Site]:
        """Every point of the layer."""
        for site in map(with_products, self._points()):
            flattens = self._flattened_by(site)
            yield site if flattens is None else FlatSite(site.info, site, flattens)

    def _flattened_by(self, site: Site) -> nn.Module | None:
        """The module inside which this point has batch and positions in one axis."""
        point = site.name.removeprefix(self.at)
        mlp, mixer = self.block.mlp, self.block.mixer
        if point.startswith("mlp.shared.") and isinstance(mlp, MoEPart):
            return mlp.module
        if point.startswith("mixer.") and mixer is not None and site.axes == "b p c":
            return mixer.module
        if self.block.flattens and point.startswith(_FLATTENED):
            return self.block.module
        return None

    def _points(self) -> Iterator[Site]:
        at, block = self.at, self.block
        yield from self._ends()
        if block.residual is None and not block.has_branches:
            return
        for slot, norm in block.norms.items():
            if not (slot == "ln2" and self._one_norm):
                yield from self.norm(f"{at}{slot}", norm, self._is_overwritten(norm))
        yield from self._between()
        if block.attn is not None:
            yield from self._added(f"{at}hook_attn_out", block.attn)
            yield from self._attention_inputs(block.attn)
            yield from self.attention.sites(f"{at}attn.", block.attn)
        if block.cross is not None:
            yield from self._added(f"{at}hook_cross_attn_out", block.cross)
            yield from self.attention.sites(f"{at}cross_attn.", block.cross)
        if block.mixer is not None:
            yield from self._added(f"{at}hook_mixer_out", block.mixer)
            yield from self._mixer(f"{at}mixer.", block.mixer)
            if block.mixer.feeder is not None:
                yield from self.attention.read_and_mixed(f"{at}attn.", block.mixer.feeder)
        if block.mlp is not None:
            yield from self._added(f"{at}hook_mlp_out", block.mlp)
            yield self._mlp_input(block.mlp)
            yield from self.feed_forward.sites(f"{at}mlp.", block.mlp)
        if block.per_layer is not None:
            yield self.output(f"{at}hook_per_layer_out", block.per_layer)

    def _is_overwritten(self, norm: Norm) -> bool:
        """Whether the model may write into a norm's output tensor after it was read."""
        after = self.block.members is not None and norm.module is self.block.exit
        return after or any(
            isinstance(branch, AttentionPart | MLPPart)
            and branch.overwritten
            and branch.post_norm is norm
            for branch in (self.block.attn, self.block.cross, self.block.mlp)
        )

    def _ends(self) -> Iterator[Site]:
        """The stream before and after the layer.

        Outside a layer that is no module of its own, the model reads the same tensor for the skip
        connection, and may write into what the last module returns.
        """
        block, name = self.block, f"{self.at}hook_resid_pre"
        apart = block.members is not None
        if block.pair is not None:
            yield self._pair(name, "input", block.pair)
            yield self._pair(f"{self.at}hook_resid_post", "output", block.pair)
            return
        info = self.info(name, block.entrance, "input")
        inside = block.is_entered_inside
        yield SharedInputSite(info, block.entrance) if inside else self.input(name, block.entrance)
        yield self.output(f"{self.at}hook_resid_post", block.exit, overwritten=apart)

    def _pair(self, name: str, phase: Phase, names: tuple[str, str]) -> Site:
        info = self.info(name, self.block.module, phase, f"{' and '.join(names)}, stacked")
        return PairSite(info, self.block.module, names, phase)

    def _added(self, name: str, branch: Any) -> Iterator[Site]:
        """What a branch adds, after a dropout that the block calls as a function.

        Where it is not described how the layer adds it, it is what the branch's module gives.
        """
        writer, block = branch.writer, self.block.runner
        overwritten = isinstance(branch, AttentionPart | MLPPart) and branch.overwritten
        if not self._gives(branch):
            return
        site = self.written(name, writer, overwritten)
        if self.block.residual is None or not drops_after(block, writer.modules[-1]):
            yield site
        elif isinstance(site, SumSite):
            yield DroppedSumSite(**members_of(site), block=block)
        else:
            assert isinstance(site, OutputSite)
            yield DroppedSite(**members_of(site), block=block)

    def _gives(self, branch: Any) -> bool:
        """Whether what a branch gives is known: it is not written by the whole layer, whose output
        holds more."""
        return self.block.residual is not None or self.block.module not in branch.writer.modules

    # --- the stream between the branches -----------------------------------------------------

    @property
    def _summed(self) -> bool:
        return self.block.residual == "post_norm"

    @property
    def _one_norm(self) -> bool:
        """Whether attention and MLP read through the same norm."""
        block = self.block
        return bool(block.ln1 and block.ln2 and block.ln1.module is block.ln2.module)

    def _between(self) -> Iterator[Site]:
        block, ln_cross = self.block, self.block.norms.get("ln_cross")
        branches = [block.attn or block.mixer, block.cross, block.mlp]
        alone = sum(one is not None for one in branches) < 2
        if alone or not block.adds_up or block.residual == "parallel":
            return
        steps: list[tuple[str, Norm | None, Norm | None, Any]] = []
        if block.attn or block.mixer:
            following = block.cross or block.mlp
            before = ln_cross if block.cross else block.ln2
            steps.append(("hook_resid_mid", block.ln1, before, following))
        if block.cross:
            steps.append(("hook_resid_mid_cross", ln_cross, block.ln2, block.mlp))
        for name, after, before, following in steps:
            if following is None:
                continue
            if self._summed and after is not None:
                yield self.output(f"{self.at}{name}", after.module)
                continue
            reader = before.module if before else _first_modules(following)[0]
            yield SharedInputSite(self.info(f"{self.at}{name}", reader, "input"), reader)

    def _attention_inputs(self, attn: AttentionPart) -> Iterator[Site]:
        at = self.at
        norm = None if self._summed or self.block.ln1 is None else self.block.ln1.module
        yield self._branch_input(f"{at}hook_attn_in", norm, _first_modules(attn))
        if attn.latent is not None:
            return
        for letter, role in attn.roles.items():
            reader = norm or role.linear.module
            name, formula = f"{at}hook_{letter}_input", "b p m -> b p n m (repeated)"
            yield HeadInputSite(
                self.info(name, reader, "input", formula),
                norm=norm,
                projection=role.linear.module,
                layout=role.layout,
                n_heads=role.n,
                in_scale=role.in_scale,
            )

    def _mlp_input(self, mlp: FeedForward) -> Site:
        norm = None if self._summed or self.block.ln2 is None else self.block.ln2.module
        return self._branch_input(f"{self.at}hook_mlp_in", norm, _first_modules(mlp))

    def _branch_input(
        self, name: str, norm: nn.Module | None, modules: tuple[nn.Module, ...]
    ) -> Site:
        if norm is None:
            return BranchInputSite(self.info(name, modules[0], "input"), modules)
        if self._one_norm or self.block.skip_norm:  # others read the norm's output too
            return BranchInputSite(self.info(name, norm, "input"), modules, norm)
        return self.input(name, norm, rank=1)

    # --- inside the mixer and the experts ----------------------------------------------------

    def _mixer(self, at: str, mixer: MixerPart) -> Iterator[Site]:
        yield self.input(f"{at}hook_in", mixer.module)
        for step, module in mixer.steps.items():
            site = self.output(f"{at}hook_{step}", module)
            yield site.with_axes("b c s") if isinstance(module, nn.Conv1d) else site
        yield self.output(f"{at}hook_out", mixer.module)

    def experts(self) -> ExpertGroup | None:
        """The points inside the layer's experts, where they can be seen one by one."""
        mlp = self.block.mlp
        if not isinstance(mlp, MoEPart):
            return None
        return self.feed_forward.experts(f"{self.at}mlp.", mlp, self.block.repeat)


def _first_modules(part: Any) -> tuple[nn.Module, ...]:
    """The first modules that read a branch's input."""
    if isinstance(part, AttentionPart):
        latent = part.latent
        if latent is not None:
            first = latent.q_down or part.roles["q"].linear
            return first.module, latent.kv_down.module
        linears = [role.linear.module for role in part.roles.values()] or [part.module]
    elif isinstance(part, MLPPart) and part.token_shift is None:
        linears = [role.linear.module for role in (part.gate, part.up) if role is not None]
    else:
        linears = [part.module]
    return tuple(dict.fromkeys(linears))
