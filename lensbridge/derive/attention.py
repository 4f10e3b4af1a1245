"""The attention module of a branch: finds its projections from the inputs of the kernel."""

import torch
from torch import Tensor, nn

from lensbridge.derive.branches import Branch, kernels_of, out_projection, written_by
from lensbridge.derive.fields import Fields
from lensbridge.derive.heads import Given, RoleName, Sizes, all_given, consistent, distinct_heads
from lensbridge.derive.latent import find_latent
from lensbridge.derive.layer import (
    Layer,
    NotEstablished,
    as_heads,
    common_parent,
    fitted_scale,
    unit,
)
from lensbridge.derive.trace import Kernel, TracedCall, kernels_with
from lensbridge.spec import (
    Attention,
    FusedQKV,
    KernelQKV,
    LatentQKV,
    QKNormAxes,
    Scale,
    SplitQKV,
)


class FoundAttention:
    """The description of an attention module, with facts that the rest of the description needs.

    Args:
        spec: the description.
        sizes: heads and their widths.
        reader: the projection that reads the stream for the queries.
        cross: whether keys come from another stack than queries.
        absolute: whether absolute positions matter although they are rotary.
    """

    def __init__(
        self, spec: Attention, sizes: Sizes, reader: TracedCall, cross: bool, absolute: bool = False
    ) -> None:
        self.spec = spec
        self.absolute = absolute
        self.sizes = sizes
        self.reader = reader
        self.cross = cross


def find_attention(layer: Layer, branch: Branch, fields: Fields) -> FoundAttention:
    """The attention module whose result a branch adds.

    Raises:
        NotEstablished: with what could not be found.
    """
    kernels = kernels_of(layer, branch)
    if len(kernels) != 1:
        raise NotEstablished(f"its attention kernel runs {len(kernels)} times")
    kernel = kernels[0]
    if kernel.turned:
        raise NotEstablished("the scores of its attention kernel have positions before heads")
    out, gated = out_projection(layer, kernel)
    if out is None:
        raise NotEstablished("no projection reads the output of its attention kernel")
    if layer.value(out.output) is not branch.core:
        raise NotEstablished(
            f"the output of '{layer.relative(out.path)}' is changed before it is added"
        )
    search = _Search(layer, branch, fields, kernel, out, gated)
    try:
        return search.found()
    except NotEstablished as error:
        return search.at_kernel(error)


class _Search:
    def __init__(
        self,
        layer: Layer,
        branch: Branch,
        fields: Fields,
        kernel: Kernel,
        out: TracedCall,
        gated: bool,
    ) -> None:
        self.layer, self.branch, self.fields = layer, branch, fields
        self.kernel, self.out, self.gated = kernel, out, gated
        self.q, self.k, self.v = self._operands()
        self.sizes = Sizes(self.q.shape[2], self.v.shape[2], self.q.shape[3], self.v.shape[3])

    def _operands(self) -> tuple[Tensor, Tensor, Tensor]:
        batch, positions = self.layer.rows
        if self.kernel.v is None:
            raise NotEstablished("the value operand of its attention kernel was not found")
        q, k, v = (as_heads(x, batch) for x in (self.kernel.q, self.kernel.k, self.kernel.v))
        if q.shape[:2] != (batch, positions) or k.shape[:2] != v.shape[:2]:
            raise NotEstablished(
                f"its attention kernel is given {list(self.kernel.q.shape)}, which is not "
                "[batch, heads, positions, d]"
            )
        return q, distinct_heads(k), distinct_heads(v)

    def found(self) -> FoundAttention:
        vs = self._given("v", self.v)
        if not vs:
            return self._latent()
        qs, ks = self._given("q", self.q), self._given("k", self.k)
        for role, given in (("queries", qs), ("keys", ks)):
            if not given:
                raise NotEstablished(f"no projection gives the {role} of its attention kernel")
        return self._described(*consistent(qs, ks, vs))

    def _given(self, role: RoleName, operand: Tensor) -> list[Given]:
        return list(all_given(self.layer, role, operand, self.sizes, self.kernel.time))

    def _described(self, q: Given, k: Given, v: Given) -> FoundAttention:
        norms = [given.norm.path for given in (q, k, v) if given.norm is not None]
        paths = [given.projection.path for given in (q, k, v)]
        path = self._module([*paths, self.out.path, *norms])
        below = self.layer.relative
        q_norm, k_norm, v_norm = (
            None if given.norm is None else _within(path, below(given.norm.path))
            for given in (q, k, v)
        )
        axes: QKNormAxes = next((g.axes for g in (q, k) if g.norm is not None), "positions_first")
        spec = Attention(
            path,
            qkv=self._qkv(path, q, k, v),
            out=_within(path, below(self.out.path)),
            rotary=q.rotated or k.rotated,
            written_by=written_by(self.layer, self.branch, path),
            scale=self.branch.factor.scale(self.fields),
            q_norm=q_norm,
            k_norm=k_norm,
            v_norm=v_norm,
            qk_norm_axes=axes,
            sinks=self._sinks(path),
            gated=self.gated,
            position_bias=self._position_bias(path),
            k_scale=self._k_scale(q, k),
            v_scale=self._number(v.factor) if v.norm is None else None,
            mask_from_v=v.layout is None and self._mask_reads(v.projection),
        )
        cross = self.k.shape[1] != self.q.shape[1]
        return FoundAttention(spec, self.sizes, q.projection, cross, q.absolute or k.absolute)

    def _qkv(self, path: str, q: Given, k: Given, v: Given) -> SplitQKV | FusedQKV:
        q_path, k_path, v_path = (
            _within(path, self.layer.relative(given.projection.path)) for given in (q, k, v)
        )
        if q.layout is not None:
            return FusedQKV(q_path, layout=q.layout, order=q.order)
        return SplitQKV(q_path, k_path, v_path, gated_q=q.gated)

    def _latent(self) -> FoundAttention:
        latent = find_latent(self.layer, self.kernel, self.q, self.k, self.v)
        if latent is None:
            raise NotEstablished("no projection gives the values of its attention kernel")
        path = self._module([*(call.path for call in latent.calls), self.out.path])
        name = {
            role: _within(path, self.layer.relative(call.path))
            for role, call in latent.by_role.items()
        }
        spec = Attention(
            path,
            qkv=LatentQKV(
                q=name["q"],
                kv_down=name["kv_down"],
                kv_norm=name["kv_norm"],
                kv_up=name["kv_up"],
                q_down=name.get("q_down"),
                q_norm=name.get("q_norm"),
            ),
            out=_within(path, self.layer.relative(self.out.path)),
            rotary=self._is_turned(latent.by_role["q"]),
            written_by=written_by(self.layer, self.branch, path),
            scale=self.branch.factor.scale(self.fields),
            sinks=self._sinks(path),
            gated=self.gated,
        )
        reader = latent.by_role.get("q_down", latent.by_role["q"])
        return FoundAttention(spec, self.sizes, reader, cross=False)

    def at_kernel(self, why: NotEstablished) -> FoundAttention:
        """Attention of which it was not found how queries, keys and values are made.

        Raises:
            NotEstablished: as before, if it has no module of its own, or keys of another stack.
        """
        path = self._module([self.out.path])
        calls = (call for call in self.layer.calls if self.layer.relative(call.path) == path)
        reader = next((call for call in calls if call.start < self.kernel.time < call.end), None)
        if not path or reader is None or self.k.shape[1] != self.q.shape[1]:
            raise why
        spec = Attention(
            path,
            qkv=KernelQKV(),
            out=_within(path, self.layer.relative(self.out.path)),
            written_by=written_by(self.layer, self.branch, path),
            scale=self.branch.factor.scale(self.fields),
            sinks=self._sinks(path),
            gated=self.gated,
        )
        return FoundAttention(spec, self.sizes, reader, cross=False)

    def _is_turned(self, query: TracedCall) -> bool:
        """Whether the queries differ from their projection's output by more than a factor."""
        assert query.output is not None
        given = query.output.reshape(self.q.shape)
        return fitted_scale(given, self.q, self.layer.trace.tolerance) is None

    def _module(self, paths: list[str]) -> str:
        """The smallest module that contains all of these and the kernel, relative to the block."""
        relative = [self.layer.relative(path) for path in paths]
        kernel = self.layer.relative(self.kernel.path)
        parents = [path.rpartition(".")[0] for path in relative]
        return common_parent([*parents, kernel] if kernel else parents)

    def _k_scale(self, q: Given, k: Given) -> Scale | None:
        """The factor of rotated keys, if it is not the queries' own.

        Some kernels have queries multiplied by 1 / sqrt(d_head) and need no factor of the scores.
        """
        ratio, usual = k.factor / q.factor, self.sizes.d_qk**0.5
        if k.norm is not None or not k.rotated or unit(ratio / usual, self.layer.trace.tolerance):
            return None
        return self._number(ratio)

    def _number(self, factor: float) -> Scale | None:
        return None if unit(factor, self.layer.trace.tolerance) else self.fields.number(factor)

    def _mask_reads(self, values: TracedCall) -> bool:
        """Whether the kernel's mask changes with the output of the values' projection."""
        if self.kernel.mask is None:
            return False
        try:
            runs = [kernels_with(self.branch.root, values.module, by) for by in (0.0, 1.0)]
        except Exception:  # a module that cannot run by itself
            return False
        plain, moved = (run[0].mask if len(run) == 1 else None for run in runs)
        return plain is not None and moved is not None and not torch.equal(plain, moved)

    def _sinks(self, path: str) -> str | None:
        if not self.kernel.extra_column:
            return None
        module = self._at(path)
        fits = [
            name
            for name, parameter in module.named_parameters()
            if parameter.shape == (self.sizes.heads,)
        ]
        if len(fits) != 1:
            raise NotEstablished("its softmax has one column more than there are keys")
        return fits[0]

    def _position_bias(self, path: str) -> str | None:
        for name, module in self._at(path).named_modules():
            if isinstance(module, nn.Embedding) and module.embedding_dim == self.sizes.heads:
                return name
        return None

    def _at(self, path: str) -> nn.Module:
        return self.layer.call.module.get_submodule(path)


def _within(parent: str, path: str) -> str:
    """A path of the block, relative to the module at `parent`."""
    return path if not parent else path.removeprefix(f"{parent}.")
