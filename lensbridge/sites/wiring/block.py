"""The points of one layer."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    FeedForward,
    MixerPart,
    MLPPart,
    MoEPart,
    ResolvedModel,
    Role,
    StackPart,
)
from lensbridge.sites.composed import BranchInputSite, FlatSite, GatheredSite
from lensbridge.sites.derived import ClippedSite, HeadInputSite, LatentSite, ResultSite, SumSite
from lensbridge.sites.dropout import DroppedSite, DroppedSumSite, drops_after, members_of
from lensbridge.sites.experts import ChoiceSite, RouterSite
from lensbridge.sites.kernel.rows import RowKernelSite
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.kernel.tap import Role as KernelRole
from lensbridge.sites.pair import PairSite
from lensbridge.sites.products import with_products
from lensbridge.sites.routing import routing_of
from lensbridge.sites.site import OutputSite, Phase, SharedInputSite, Site
from lensbridge.sites.wiring.index import ExpertGroup
from lensbridge.sites.wiring.placing import Placing
from lensbridge.tensors import layouts
from lensbridge.tensors.layouts import Layout

_KERNEL_ROLES: dict[str, KernelRole] = {
    "hook_rot_q": "rot_q",
    "hook_rot_k": "rot_k",
    "hook_attn_scores": "scores",
    "hook_pattern": "pattern",
}
_FLATTENED = ("hook_resid_mid", "hook_mlp", "mlp.", "ln2", "ln2_post")


class BlockWiring(Placing):
    """The sites of one layer, whose names begin with `at`."""

    def __init__(self, native: ResolvedModel, at: str, block: BlockPart, stack: StackPart) -> None:
        super().__init__(native)
        self.at = at
        self.block = block
        self.stack = stack

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
            yield from self._attention(f"{at}attn.", block.attn)
        if block.cross is not None:
            yield from self._added(f"{at}hook_cross_attn_out", block.cross)
            yield from self._attention(f"{at}cross_attn.", block.cross)
        if block.mixer is not None:
            yield from self._added(f"{at}hook_mixer_out", block.mixer)
            yield from self._mixer(f"{at}mixer.", block.mixer)
            if block.mixer.feeder is not None:
                yield from self._read_and_mixed(f"{at}attn.", block.mixer.feeder)
        if block.mlp is not None:
            yield from self._added(f"{at}hook_mlp_out", block.mlp)
            yield self._mlp_input(block.mlp)
            if isinstance(block.mlp, MoEPart):
                yield from self._moe(f"{at}mlp.", block.mlp)
            elif isinstance(block.mlp, MLPPart):
                yield from self._neurons(f"{at}mlp.", block.mlp)
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

    # --- attention ---------------------------------------------------------------------------

    def _attention(self, at: str, attn: AttentionPart) -> Iterator[Site]:
        yield from self._read_and_mixed(at, attn)
        heads = layouts.heads(attn.n_heads, attn.d_head)
        yield ResultSite(
            self.info(f"{at}hook_result", attn.out.module, "output", "z @ W_O, per head"),
            out=attn.out,
            layout=heads,
            n_heads=attn.n_heads,
            post_norm=attn.post_norm,
            scale=attn.writer.scale,
        )
        if attn.post_norm is not None and at.endswith(".attn."):
            yield ResultSite(
                self.info(f"{at}hook_head_out", attn.out.module, "output", "z @ W_O, per head"),
                out=attn.out,
                layout=heads,
                n_heads=attn.n_heads,
                post_norm=None,
                scale=Multiplier(),
            )
        if attn.position_bias is not None:
            layout = Layout(
                "q k h -> 1 h q k",
                lambda x: x.movedim(-1, 0).unsqueeze(0),
                lambda x, share: x.copy_(share[0].movedim(0, -1)),
                whole=False,
            )
            yield self.output(f"{at}hook_rel_pos_bias", attn.position_bias, layout)

    def _read_and_mixed(self, at: str, attn: AttentionPart) -> Iterator[Site]:
        """From queries, keys and values to z."""
        yield from self._projections(at, attn)
        sizes = {"n_heads": attn.n_heads, "n_kv": attn.n_kv, "sinks": attn.sinks}
        for last, role in _KERNEL_ROLES.items():
            if attn.rotary or role in ("scores", "pattern"):
                yield self._kernel(f"{at}{last}", attn, role, sizes)
        if attn.q is None:
            yield self._kernel(f"{at}hook_v", attn, "v", sizes)
        heads = layouts.heads(attn.n_heads, attn.d_head)
        if attn.gated:
            yield self._kernel(f"{at}hook_z", attn, "z", sizes)
        else:
            yield self.input(f"{at}hook_z", attn.out.module, layout=heads)

    def _kernel(self, name: str, attn: AttentionPart, role: KernelRole, sizes: Any) -> Site:
        info = self.info(name, attn.module, "kernel")
        if self.stack.in_one_row:
            return RowKernelSite(info, attn.module, role, **sizes)
        turned = self.stack.positions_first
        return KernelSite(info, attn.module, role, **sizes, positions_first=turned)

    def _projections(self, at: str, attn: AttentionPart) -> Iterator[Site]:
        norms = {"q": attn.q_norm, "k": attn.k_norm, "v": attn.v_norm}
        roles = {f"{at}hook_{letter}": role for letter, role in attn.roles.items()}
        for letter, role in attn.roles.items():
            name, norm = f"{at}hook_{letter}", norms.get(letter)
            if attn.clip is not None:
                module = norm or role.linear.module
                layout = role.layout if norm is None else _normed(attn, role)
                info = self.info(name, module, "output", f"{layout.pattern}, clipped")
                yield ClippedSite(info, module, layout, attn.clip)
            elif norm is not None:
                yield self.output(name, norm, _normed(attn, role))
            elif letter != "q" and attn.latent is not None:
                yield self._latent(name, attn, role, attn.latent.d_rope if letter == "k" else 0)
            else:
                site = self.projected(name, role, roles)
                gathered = attn is self.block.cross and letter != "q"
                yield GatheredSite(site.info, site, self.block.entrance) if gathered else site
        if attn.latent is not None:
            width, latent = attn.latent.kv_norm.width, attn.latent
            layout = layouts.leading(width, "latent key")
            yield self.output(f"{at}hook_kv_latent", latent.kv_down.module, layout)
            if latent.q_down is not None:
                yield self.output(f"{at}hook_q_latent", latent.q_down.module)

    def _latent(self, name: str, attn: AttentionPart, role: Role, d_shared: int) -> Site:
        latent = attn.latent
        assert latent is not None
        formula = "own part, then the part of all heads" if d_shared else role.layout.pattern
        return LatentSite(
            self.info(name, role.linear.module, "output", formula),
            down=latent.kv_down.module,
            up=latent.kv_up.module,
            layout=role.layout,
            n_heads=attn.n_heads,
            d_shared=d_shared,
        )

    # --- mixer, MLP, experts -----------------------------------------------------------------

    def _mixer(self, at: str, mixer: MixerPart) -> Iterator[Site]:
        yield self.input(f"{at}hook_in", mixer.module)
        for step, module in mixer.steps.items():
            site = self.output(f"{at}hook_{step}", module)
            yield site.with_axes("b c s") if isinstance(module, nn.Conv1d) else site
        yield self.output(f"{at}hook_out", mixer.module)

    def _neurons(self, at: str, mlp: MLPPart) -> Iterator[Site]:
        roles = {f"{at}hook_pre": mlp.gate or mlp.up}
        roles |= {f"{at}hook_pre_linear": mlp.up} if mlp.gate else {}
        for name, role in roles.items():
            yield self.projected(name, role, roles)
        yield self.input(f"{at}hook_post", mlp.inner_norm or mlp.down.module)

    def _moe(self, at: str, moe: MoEPart) -> Iterator[Site]:
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

    def experts(self) -> ExpertGroup | None:
        """The points inside the layer's experts, where they can be seen one by one."""
        mlp = self.block.mlp
        if not isinstance(mlp, MoEPart) or mlp.experts is None:
            return None
        where = f"inside {self.native.paths.get(mlp.experts.module, '')}"
        routing = routing_of(mlp.experts, mlp.router)
        return ExpertGroup(f"{self.at}mlp.", mlp.experts, routing, where, self.block.repeat)


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


def _normed(attn: AttentionPart, role: Role) -> Layout:
    """How the output of a norm of q or k holds its heads."""
    if attn.qk_norm_axes == "flat":
        return layouts.heads(role.n, role.d)
    return layouts.plain() if attn.qk_norm_axes == "positions_first" else layouts.heads_first()
