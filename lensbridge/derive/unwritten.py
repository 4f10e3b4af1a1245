"""Branches of a layer of which it is not known how they are added to the stream.

They are found from their own inside: attention from its kernel, MLPs from their activation. What
they read and give is not compared with the stream, so they are described without `residual`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lensbridge.derive.attention import find_attention
from lensbridge.derive.branches import Branch, out_projection
from lensbridge.derive.fields import Fields
from lensbridge.derive.found import FoundBlock, undescribed
from lensbridge.derive.heads import Sizes
from lensbridge.derive.layer import Layer, NotEstablished, Value, is_projection
from lensbridge.derive.mixer import computes, find_mixer, mixes_positions
from lensbridge.derive.mlp import FoundDense, find_dense
from lensbridge.derive.moe import find_moe, has_experts, is_experts
from lensbridge.derive.multiples import ONE
from lensbridge.derive.norms import NormFacts, facts_of, looks_like_norm
from lensbridge.derive.trace import TracedCall
from lensbridge.spec import Block, Norms


def find_unwritten(layer: Layer, fields: Fields, usual: NormFacts, reason: str) -> FoundBlock:
    """The branches of one layer, without how they are added.

    Args:
        layer: the layer; its shape is that of what branches read.
        fields: the config.
        usual: what norms compute elsewhere in the model.
        reason: why it is not known how the branches are added.
    """
    search = _Search(layer, fields)
    block = search.block(usual)
    missing = {"residual": reason, **search.missing}
    if not any((block.attn, block.mixer, block.mlp)):
        return FoundBlock(undescribed(usual), missing=missing)
    return FoundBlock(block, search.sizes, missing, search.absolute)


class _Search:
    def __init__(self, layer: Layer, fields: Fields) -> None:
        self.layer, self.fields = layer, fields
        self.missing: dict[str, str] = {}
        self.sizes: Sizes | None = None
        self.absolute = False
        self.readers: dict[str, TracedCall] = {}
        positions = layer.rows[1]
        self.kernels = [one for one in layer.kernels if one.q.shape[-2] == positions]
        self.outermost = [call for call in layer.calls if not self._is_inside_another(call)]

    def _is_inside_another(self, call: TracedCall) -> bool:
        return any(other is not call and _holds(other, call) for other in self.layer.calls)

    def block(self, usual: NormFacts) -> Block:
        """The branches and the norms before them."""
        mixing = self._mixing()
        if mixing is None and self.layer.kernels:
            self.missing["attn"] = "its attention kernel was matched with no module of its layers"
        block = Block(residual=None)
        if mixing is not None:
            block = self._with("attn", block, lambda: self._attention(block, mixing))
            if block.attn is None:
                block = self._with("mixer", block, lambda: self._mixer(block, mixing))
        block = self._with("mlp", block, lambda: self._mlp(block, mixing))
        return replace(block, norms=self._norms(usual))

    def _with(self, part: str, block: Block, find: Callable[[], Block]) -> Block:
        try:
            return find()
        except NotEstablished as error:
            self.missing.setdefault(part, str(error))
            return block

    # --- attention and mixers --------------------------------------------------------------------

    def _mixing(self) -> TracedCall | None:
        """The module of the layer that mixes positions: the one with attention kernels, or another
        one if there are none."""
        for kernel in self.kernels:
            return next((c for c in self.outermost if c.start < kernel.time < c.end), None)
        found = [
            call
            for call in self.outermost
            if self.layer.value(call.output) is not None
            and computes(self.layer, call)
            and mixes_positions(call)
        ]
        return found[0] if len(found) == 1 else None

    def _attention(self, block: Block, call: TracedCall) -> Block:
        if not self.kernels:
            return block
        out, _ = out_projection(self.layer, self.kernels[0])
        core = None if out is None else self.layer.value(out.output)
        found = find_attention(self.layer, self._branch(call, core), self.fields)
        self.sizes, self.absolute = found.sizes, found.absolute
        self.readers["pre_attn"] = found.reader
        return replace(block, attn=replace(found.spec, written_by=None, scale=None))

    def _mixer(self, block: Block, call: TracedCall) -> Block:
        spec, reader = find_mixer(self.layer, self._branch(call), self.fields)
        self.readers["pre_attn"] = reader
        return replace(block, mixer=replace(spec, written_by=None, scale=None))

    def _branch(self, call: TracedCall, core: Value | None = None) -> Branch:
        """A branch that a module computes, with what it reads and adds left open."""
        given = core or self.layer.value(call.output) or _no_value(self.layer)
        return Branch(_no_value(self.layer), given, ONE, given, None, call)

    # --- MLPs ------------------------------------------------------------------------------------

    def _mlp(self, block: Block, mixing: TracedCall | None) -> Block:
        outside = [c for c in self.layer.calls if mixing is None or not _holds(mixing, c)]
        experts = [call for call in outside if is_experts(call.module)]
        if experts:
            return self._moe(block, experts, outside)
        found = list(self._dense(outside))
        if not found:
            raise NotEstablished("no activation of a projection is projected back")
        if len(found) > 1:
            paths = ", ".join(f"'{one.spec.path}'" for one in found)
            raise NotEstablished(f"there are several: {paths}")
        self.readers["pre_mlp"] = found[0].reader
        spec = found[0].spec
        writer = None if spec.path else spec.down  # the layer itself gives more than the MLP
        return replace(block, mlp=replace(spec, written_by=writer, scale=None))

    def _dense(self, calls: list[TracedCall]) -> Iterator[FoundDense]:
        seen = set()
        for call in calls:
            if not is_projection(call.module) or self.layer.value(call.output) is None:
                continue
            try:
                found = find_dense(self.layer, call, self.layer.call.start, self.fields)
            except NotEstablished:
                continue
            if found.spec not in seen:
                seen.add(found.spec)
                yield found

    def _moe(self, block: Block, experts: list[TracedCall], calls: list[TracedCall]) -> Block:
        around = [c for c in calls if _holds(c, experts[0]) and self.layer.value(c.output)]
        roots = [call for call in around if has_experts(self.layer, self._branch(call))]
        if len(experts) > 1 or not roots:
            raise NotEstablished("no module gives what its experts compute for each token")
        spec, reader = find_moe(self.layer, self._branch(roots[0]), self.fields)
        self.readers["pre_mlp"] = reader
        return replace(block, mlp=replace(spec, written_by=None, scale=None))

    # --- norms -----------------------------------------------------------------------------------

    def _norms(self, usual: NormFacts) -> Norms:
        kinds, paths = usual, dict[str, Any]()
        for slot, reader in self.readers.items():
            read = self.layer.value(reader.inputs[0]) if reader.inputs else None
            norm = next((c for c in read.producers if looks_like_norm(c)), None) if read else None
            if norm is None:
                continue
            try:
                facts = facts_of(norm, self.fields, self.layer.trace.tolerance)
            except NotEstablished as error:
                self.missing[f"norms.{slot}"] = str(error)
                continue
            if paths and facts != kinds:
                self.missing[f"norms.{slot}"] = "its norms are of more than one kind"
                continue
            kinds, paths[slot] = facts, self.layer.relative(norm.path)
        return Norms(**paths, kind=kinds.kind, unit_offset=kinds.unit_offset, eps=kinds.eps)


def _holds(call: TracedCall, other: TracedCall) -> bool:
    """Whether a call is that other one, or that one is inside it."""
    return call.start <= other.start and other.end <= call.end


def _no_value(layer: Layer) -> Value:
    return Value(layer.call.inputs[0], layer.call.start)
