"""The points inside one attention: projections, kernel, latents, heads."""

from collections.abc import Iterator
from typing import Any

from lensbridge.native.multiplier import Multiplier
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    LatentPart,
    ResolvedModel,
    Role,
    StackPart,
)
from lensbridge.sites.composed import GatheredSite
from lensbridge.sites.derived import ClippedSite
from lensbridge.sites.heads import LatentSite, ResultSite
from lensbridge.sites.kernel.rows import RowKernelSite
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.kernel.tap import Role as KernelRole
from lensbridge.sites.site import Site
from lensbridge.sites.wiring.placing import Placing
from lensbridge.tensors import layouts
from lensbridge.tensors.layouts import Layout

_KERNEL_ROLES: dict[str, KernelRole] = {
    "hook_rot_q": "rot_q",
    "hook_rot_k": "rot_k",
    "hook_attn_scores": "scores",
    "hook_pattern": "pattern",
}


class AttentionWiring(Placing):
    """The sites of the attentions of one layer."""

    def __init__(self, native: ResolvedModel, block: BlockPart, stack: StackPart) -> None:
        super().__init__(native)
        self.block = block
        self.stack = stack

    def sites(self, at: str, attn: AttentionPart) -> Iterator[Site]:
        """Every point of an attention, whose names begin with `at`."""
        yield from self.read_and_mixed(at, attn)
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

    def read_and_mixed(self, at: str, attn: AttentionPart) -> Iterator[Site]:
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
        """Queries, keys and values before rotary, and the latents that they are made from."""
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
                shared = attn.latent.d_rope if letter == "k" else 0
                yield self._from_latent(name, attn, attn.latent, role, shared)
            else:
                site = self.projected(name, role, roles)
                crosses = attn is self.block.cross and letter != "q"
                gathered = crosses and not self.stack.positions_first
                yield GatheredSite(site.info, site, self.block.entrance) if gathered else site
        if attn.latent is not None:
            yield from self._latents(at, attn.latent)

    def _latents(self, at: str, latent: LatentPart) -> Iterator[Site]:
        """What queries, keys and values are made from."""
        layout = layouts.leading(latent.kv_norm.width, "latent key")
        yield self.output(f"{at}hook_kv_latent", latent.kv_down.module, layout)
        if latent.q_down is not None:
            yield self.output(f"{at}hook_q_latent", latent.q_down.module)

    def _from_latent(
        self, name: str, attn: AttentionPart, latent: LatentPart, role: Role, d_shared: int
    ) -> Site:
        """Keys or values that are made from a latent."""
        formula = "own part, then the part of all heads" if d_shared else role.layout.pattern
        return LatentSite(
            self.info(name, role.linear.module, "output", formula),
            down=latent.kv_down.module,
            up=latent.kv_up.module,
            layout=role.layout,
            n_heads=attn.n_heads,
            d_shared=d_shared,
        )


def _normed(attn: AttentionPart, role: Role) -> Layout:
    """How the output of a norm of q or k holds its heads."""
    if attn.qk_norm_axes == "flat":
        return layouts.heads(role.n, role.d)
    return layouts.plain() if attn.qk_norm_axes == "positions_first" else layouts.heads_first()
