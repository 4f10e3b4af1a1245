"""Latent attention: the projections to and from the latents, and what heads have of them."""

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from lensbridge.native.fsdp import shard_of
from lensbridge.native.linear import Linear
from lensbridge.native.norm import Norm
from lensbridge.native.parts import LatentPart, Role
from lensbridge.native.resolve.finder import Finder
from lensbridge.spec import LatentQKV, Norms
from lensbridge.tensors import layouts

_RMS = Norms(kind="RMS")


@dataclass(frozen=True)
class LatentResolver:
    """The latents of one attention module."""

    finder: Finder
    module: nn.Module
    spec: LatentQKV
    n_heads: int
    d_model: int
    where: str

    def roles(self, out: Linear) -> dict[str, Role | None]:
        """What each head has of the projections; `out` is the output projection."""
        spec, n = self.spec, self.n_heads
        q, kv_up = self._linear(spec.q), self._kv_up
        d_v, width = self._d_v(out), self._kv_width
        d_nope, d_q = width - d_v, width - d_v + self._d_rope
        q_width = self.finder.divided(q.n_out, n, spec.q, self.where)
        gate = d_v if spec.gated_q else 0
        self.finder.expect(self.where, spec.q, "width of a head", q_width - gate, d_q)
        q_layout = layouts.heads(n, d_q)
        if spec.gated_q:
            q_layout = layouts.within_head(n, 0, d_q, q_width, "query gate")
        return {
            "q": Role(q, q_layout, n, d_q),
            "k": Role(kv_up, layouts.within_head(n, 0, d_nope, width, "key value"), n, d_q),
            "v": Role(kv_up, layouts.within_head(n, d_nope, d_v, width, "key value"), n, d_v),
        }

    def part(self, out: Linear) -> LatentPart:
        """The latents themselves."""
        spec = self.spec
        self._expect_inputs()
        return LatentPart(
            kv_down=self._kv_down,
            kv_norm=self._norm(spec.kv_norm, self._kv_up.n_in),
            kv_up=self._kv_up,
            q_down=self._q_down,
            q_norm=None
            if spec.q_norm is None or self._q_down is None
            else self._norm(spec.q_norm, self._q_down.n_out),
            d_nope=self._kv_width - self._d_v(out),
            d_rope=self._d_rope,
            q_reads_latent=spec.q_reads_latent,
            kv_scale=self.finder.scale(spec.kv_scale),
        )

    def _expect_inputs(self) -> None:
        spec, down = self.spec, {self.spec.kv_down: self._kv_down}
        n_latent = self.d_model
        if self._q_down is not None:
            down[str(spec.q_down)] = self._q_down
            n_latent = self._q_down.n_out
        wanted = n_latent * (2 if spec.q_reads_latent else 1)
        self.finder.expect(self.where, spec.q, "input", self._linear(spec.q).n_in, wanted)
        for path, linear in down.items():
            self.finder.expect(self.where, path, "input", linear.n_in, self.d_model)

    @cached_property
    def _kv_down(self) -> Linear:
        return self._linear(self.spec.kv_down)

    @cached_property
    def _kv_up(self) -> Linear:
        return self._linear(self.spec.kv_up)

    @cached_property
    def _q_down(self) -> Linear | None:
        return None if self.spec.q_down is None else self._linear(self.spec.q_down)

    @property
    def _kv_width(self) -> int:
        return self.finder.divided(self._kv_up.n_out, self.n_heads, self.spec.kv_up, self.where)

    @property
    def _d_rope(self) -> int:
        return self._kv_down.n_out - self._kv_up.n_in

    def _d_v(self, out: Linear) -> int:
        return self.finder.divided(out.n_in, self.n_heads, "out", self.where)

    def _linear(self, path: str) -> Linear:
        return self.finder.linear(self._find(path), path)

    def _norm(self, path: str, width: int) -> Norm:
        found = self.finder.norm(self._find(path), _RMS, width, path)
        gain = found.module._parameters.get(found.gain_name)
        if gain is not None and gain.ndim == 1 and shard_of(found.module, found.gain_name) is None:
            self.finder.expect(self.where, path, "gain", gain.numel(), width)
        return found

    def _find(self, path: str) -> nn.Module:
        return self.finder.find(self.module, path, f"{self.where} attention")
