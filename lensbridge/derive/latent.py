"""Multi-head latent attention: found by computing keys and values from the narrow latent."""

from dataclasses import dataclass

from torch import Tensor

from lensbridge.derive.layer import Layer, close, fitted_scale, is_projection
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.trace import Kernel, TracedCall


@dataclass(frozen=True)
class Latent:
    """The calls of one latent attention, under the names of the fields of `LatentQKV`."""

    by_role: dict[str, TracedCall]

    @property
    def calls(self) -> list[TracedCall]:
        return list(self.by_role.values())


def find_latent(layer: Layer, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> Latent | None:
    """The latent attention that a kernel belongs to, if its values are those of one.

    Shapes: q, k, v `[b, p, h, d]`, where v may be narrower.
    """
    search = _Search(layer, kernel)
    up = search.kv_up(k, v)
    if up is None:
        return None
    norm = search.norm_that_gives(up.inputs[0])
    down = None if norm is None else search.down(norm.inputs[0], wider=True)
    query = search.query(q, q.shape[-1] - _shared(k, v, up))
    if norm is None or down is None or query is None:
        return None
    found = {"kv_down": down, "kv_norm": norm, "kv_up": up, "q": query}
    q_norm = search.norm_that_gives(query.inputs[0], narrower=True)
    q_down = None if q_norm is None else search.down(q_norm.inputs[0], wider=False)
    if q_norm is not None and q_down is not None:
        found |= {"q_norm": q_norm, "q_down": q_down}
    return Latent(found)


def _shared(k: Tensor, v: Tensor, up: TracedCall) -> int:
    """The width of the key's rotary part, which all heads share."""
    assert up.output is not None
    return k.shape[-1] - (up.output.shape[-1] // v.shape[2] - v.shape[-1])


class _Search:
    def __init__(self, layer: Layer, kernel: Kernel) -> None:
        self.layer = layer
        self.tolerance = layer.trace.tolerance
        self.calls = [call for call in layer.calls if call.end < kernel.time and call.inputs]
        self.projections = [
            c for c in self.calls if is_projection(c.module) and c.output is not None
        ]

    def kv_up(self, k: Tensor, v: Tensor) -> TracedCall | None:
        batch, positions, heads, d_v = v.shape
        for call in self.projections:
            assert call.output is not None
            width = call.output.shape[-1]
            d_nope = width // heads - d_v
            if width % heads or not 0 < d_nope < k.shape[-1] or k.shape[2] != heads:
                continue
            whole = call.output.reshape(batch, positions, heads, -1)
            if close(whole[..., d_nope:], v, self.tolerance) and close(
                whole[..., :d_nope], k[..., :d_nope], self.tolerance
            ):
                return call
        return None

    def norm_that_gives(self, tensor: Tensor, narrower: bool = False) -> TracedCall | None:
        for call in self.calls:
            got, given = call.output, call.inputs[0]
            if got is None or got.shape != given.shape or got.numel() != tensor.numel():
                continue
            if got.shape[-1] != tensor.shape[-1] or is_projection(call.module):
                continue
            if narrower and tensor.shape[-1] == self.layer.shape[-1]:
                continue
            if close(got.reshape(tensor.shape), tensor, self.tolerance) and looks_like_norm(call):
                return call
        return None

    def down(self, tensor: Tensor, wider: bool) -> TracedCall | None:
        """The projection whose output starts with a latent, or is one."""
        width = tensor.shape[-1]
        for call in self.projections:
            assert call.output is not None
            if call.output.shape[:-1] != tensor.shape[:-1]:
                continue
            fits = call.output.shape[-1] > width if wider else call.output.shape[-1] == width
            if fits and close(call.output[..., :width], tensor, self.tolerance):
                return call
        return None

    def query(self, q: Tensor, d_nope: int) -> TracedCall | None:
        for call in self.projections:
            assert call.output is not None
            if call.output.shape[-1] != q.shape[2] * q.shape[3]:
                continue
            whole = call.output.reshape(q.shape)
            if fitted_scale(whole[..., :d_nope], q[..., :d_nope], self.tolerance) is not None:
                return call
        return None
