"""The attention of one layer: the projections of q, k and v, and their parts of the output."""

from dataclasses import replace
from typing import Any

from torch import nn

from lensbridge.native.linear import Linear
from lensbridge.native.norm import Norm
from lensbridge.native.parts import AttentionPart, LatentPart, Role, Writer
from lensbridge.native.product import Product
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.resolve.latent import LatentResolver
from lensbridge.native.wrappers import named_parts
from lensbridge.spec import Attention, Dims, FusedQKV, KernelQKV, LatentQKV, SplitQKV
from lensbridge.tensors import layouts
from lensbridge.tensors.layouts import Layout

_OF_PROJECTIONS = (
    "q_norm",
    "k_norm",
    "v_norm",
    "in_scale",
    "q_scale",
    "k_scale",
    "v_scale",
    "clip",
    "mask_from_v",
)
"""The words that say what happens to the outputs of the projections."""


class AttentionResolver:
    """The attention modules of one stack."""

    def __init__(self, finder: Finder, dims: Dims, d_model: int) -> None:
        self.finder = finder
        self.dims = dims
        self.d_model = d_model

    def part(
        self,
        layer: nn.Module,
        spec: Attention,
        writer: Writer,
        post_norm: Norm | None,
        where: str,
        crossing: bool,
    ) -> AttentionPart:
        """Attention, or cross-attention, whose keys and values may have another width."""
        module = self.finder.find(layer, spec.path, where)
        out = self._linear(module, spec.out, where, writes=True)
        n_heads = self.finder.size(self.dims.heads)
        found, n_kv, latent = self._roles(module, spec, n_heads, out, where)
        roles: Any = self._scaled(found, spec)
        d_head = roles["v"].d if roles["v"] is not None else out.n_in // n_heads
        self._expect_output(where, spec.out, out, n_heads * d_head)
        if crossing:
            self._expect_crossing(where, spec)
        else:
            self._expect_declared(where, n_heads, n_kv)
        self._require_no_lost_scale(spec, where)
        self._expect_norms(module, spec, found, where)
        return AttentionPart(
            module=module,
            path=spec.path,
            **roles,
            out=out,
            writer=writer,
            post_norm=post_norm,
            rotary=spec.rotary or isinstance(spec.qkv, KernelQKV),
            n_heads=n_heads,
            n_kv=n_kv,
            d_head=d_head,
            **self._after_projections(module, spec, where),
            latent=latent,
            sinks=None if spec.sinks is None else self.finder.tensor(module, spec.sinks, where),
            gated=spec.gated,
            overwritten=spec.overwritten,
            position_bias=self._where_there_is(module, spec.position_bias),
        )

    def _expect_output(self, where: str, path: str, out: Linear, width: int) -> None:
        self.finder.expect(where, path, "input", out.n_in, width)
        self.finder.expect(where, path, "output", out.n_out, self.d_model)

    def _expect_crossing(self, where: str, spec: Attention) -> None:
        """Require that nothing is said of cross-attention that it has no points for."""
        if spec.rotary or isinstance(spec.qkv, KernelQKV):
            raise self.finder.mismatch(
                f"{where}: cross-attention has no points after rotary; say rotary=False, and how "
                "its queries, keys and values are projected."
            )

    def _after_projections(self, module: nn.Module, spec: Attention, where: str) -> dict[str, Any]:
        """What happens to the outputs of the projections."""
        return {
            "q_norm": self._optional(module, spec.q_norm, where),
            "k_norm": self._optional(module, spec.k_norm, where),
            "v_norm": self._optional(module, spec.v_norm, where),
            "qk_norm_axes": spec.qk_norm_axes,
            "clip": self.finder.optional_number(spec.clip),
            "mask_from_v": spec.mask_from_v,
        }

    def _scaled(self, roles: dict[str, Role | None], spec: Attention) -> dict[str, Role | None]:
        before = self.finder.scale(spec.in_scale)
        said = {"q": spec.q_scale, "k": spec.k_scale, "v": spec.v_scale}
        scales = {letter: self.finder.scale(one) for letter, one in said.items()}
        return {
            letter: None if role is None else replace(role, scale=scales[letter], in_scale=before)
            for letter, role in roles.items()
        }

    def _require_no_lost_scale(self, spec: Attention, where: str) -> None:
        """A norm takes away a multiplier of what it reads, so that no value shows it."""
        for letter in "qkv":
            scale, norm = f"{letter}_scale", f"{letter}_norm"
            if getattr(spec, scale) is not None and getattr(spec, norm) is not None:
                raise self.finder.mismatch(
                    f"{where}: a multiplier before '{getattr(spec, norm)}' has no effect, because "
                    f"a norm takes it away, so leave out {scale}."
                )

    def _require_nothing_said(self, spec: Attention, where: str) -> None:
        """Nothing can be said of queries, keys and values that are read at the kernel."""
        said = [word for word in _OF_PROJECTIONS if getattr(spec, word)]
        if said:
            raise self.finder.mismatch(
                f"{where}: with KernelQKV, q, k and v are read as the kernel gets them, so leave "
                f"out {', '.join(said)}."
            )

    def _optional(self, module: nn.Module, path: str | None, where: str) -> nn.Module | None:
        found = None if path is None else self.finder.find(module, path, f"{where} attention")
        if isinstance(found, nn.Identity):
            raise self.finder.mismatch(f"{where}: '{path}' is an Identity, so there is no norm.")
        return found

    def _where_there_is(self, module: nn.Module, path: str | None) -> nn.Module | None:
        return None if path is None else dict(named_parts(module)).get(path)

    def _linear(self, module: nn.Module, path: str, where: str, writes: bool = False) -> Linear:
        found = self.finder.find(module, path, f"{where} attention")
        if isinstance(found, Product):
            found.writes = writes
        return self.finder.linear(found, path)

    def _expect_declared(self, where: str, n_heads: int, n_kv: int) -> None:
        """Require as many key/value heads as `dims.kv_heads`.

        Raises:
            ArchitectureMismatchError: there are others.
        """
        wanted = self.finder.optional_size(self.dims.kv_heads)
        if wanted not in (None, n_kv):
            raise self.finder.mismatch(
                f"{where}: with {n_heads} query heads (dims.heads) there are {n_kv} key/value "
                f"heads, and the description says {wanted} (dims.kv_heads)."
            )

    def _expect_norms(
        self, module: nn.Module, spec: Attention, roles: dict[str, Role | None], where: str
    ) -> None:
        """Require that the gain of a norm of q or k is as wide as `qk_norm_axes` says."""
        if isinstance(spec.qkv, LatentQKV):
            return
        for letter, path in (("q", spec.q_norm), ("k", spec.k_norm)):
            role = roles[letter]
            gain: Any = getattr(self._optional(module, path, where), "weight", None)
            if role is None or role.n == 1 or getattr(gain, "ndim", 0) != 1:
                continue
            flat = spec.qk_norm_axes == "flat"
            if gain.numel() == (role.d if flat else role.n * role.d):
                raise self.finder.mismatch(
                    f"{where}: '{path}' has a gain of {gain.numel()} numbers, so it norms "
                    f"{'each head' if flat else 'all heads together'}, and the description says "
                    f"qk_norm_axes={spec.qk_norm_axes!r}."
                )

    def _roles(
        self, module: nn.Module, spec: Attention, n_heads: int, out: Linear, where: str
    ) -> tuple[dict[str, Role | None], int, LatentPart | None]:
        """What each head has of the projections, how many heads of keys there are, and latents."""
        qkv = spec.qkv
        if isinstance(qkv, LatentQKV):
            latents = LatentResolver(self.finder, module, qkv, n_heads, self.d_model, where)
            return latents.roles(out), n_heads, latents.part(out)
        if isinstance(qkv, KernelQKV):
            self._require_nothing_said(spec, where)
            return dict.fromkeys("qkv"), int(self._kv_heads(n_heads)), None
        if isinstance(qkv, FusedQKV):
            roles, n_kv = self._fused(module, qkv, n_heads, where)
        else:
            roles, n_kv = self._split(module, qkv, n_heads, where)
        return roles, n_kv, None

    def _split(
        self, module: nn.Module, spec: SplitQKV, n_heads: int, where: str
    ) -> tuple[dict[str, Role | None], int]:
        q = self._linear(module, spec.q, where)
        self.finder.expect(where, spec.q, "input", q.n_in, self.d_model)
        width = self.finder.divided(q.n_out, n_heads, spec.q, where)
        d = width // 2 if spec.gated_q else width
        q_layout = (
            layouts.within_head(n_heads, 0, d, width, "query gate")
            if spec.gated_q
            else layouts.heads(n_heads, d)
        )
        roles: dict[str, Role | None] = {"q": Role(q, q_layout, n_heads, d), "k": None, "v": None}
        n_kv = int(self._kv_heads(n_heads))
        if spec.k is not None:
            k = self._linear(module, spec.k, where)
            if k.n_out > q.n_out:
                raise self.finder.mismatch(
                    f"{where}: '{spec.k}' gives {k.n_out} numbers and '{spec.q}' {q.n_out}, and no "
                    "model has more keys than queries: q and k are exchanged."
                )
            n_kv = self.finder.divided(k.n_out, d, spec.k, where)
            roles["k"] = Role(k, layouts.heads(n_kv, d), n_kv, d)
        if spec.v is not None:
            v = self._linear(module, spec.v, where)
            d_v = self.finder.divided(v.n_out, n_kv, spec.v, where)
            roles["v"] = Role(v, layouts.heads(n_kv, d_v), n_kv, d_v)
        return roles, n_kv

    def _fused(
        self, module: nn.Module, spec: FusedQKV, n_heads: int, where: str
    ) -> tuple[dict[str, Role | None], int]:
        linear, n_kv = self._linear(module, spec.path, where), int(self._kv_heads(n_heads))
        self.finder.expect(where, spec.path, "input", linear.n_in, self.d_model)
        d = self.finder.divided(linear.n_out, n_heads + 2 * n_kv, spec.path, where)

        def layout(role: str) -> Layout:
            if spec.layout == "blocked":
                return layouts.blocked(role, n_heads, n_kv, d, spec.order)
            if spec.layout == "grouped":
                return layouts.grouped(role, n_heads, n_kv, d)
            return layouts.sharded(role, n_heads, d)

        counts = {"q": n_heads, "k": n_kv, "v": n_kv}
        biases = {"q": spec.q_bias, "v": spec.v_bias}

        def role(letter: str, n: int) -> Role:
            bias = self._bias(module, biases.get(letter), n * d, where)
            return Role(linear, layout(letter), n, d, bias=bias)

        return {letter: role(letter, n) for letter, n in counts.items()}, n_kv

    def _bias(
        self, module: nn.Module, path: str | None, width: int, where: str
    ) -> tuple[nn.Module, str] | None:
        """A bias that is held apart from its projection."""
        if path is None:
            return None
        owner, name = self.finder.tensor(module, path, f"{where} attention")
        self.finder.expect(where, path, "size", getattr(owner, name).numel(), width)
        return owner, name

    def _kv_heads(self, n_heads: int) -> int:
        return self.finder.optional_size(self.dims.kv_heads) or n_heads
