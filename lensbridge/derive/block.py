"""Makes a `Block` from one layer of a trace, and gives reasons for what it leaves out."""

from dataclasses import replace

from torch import Tensor

from lensbridge.derive.attention import FoundAttention, find_attention
from lensbridge.derive.branch_mlp import BranchMLPs, is_overwritten
from lensbridge.derive.branches import Branch, branch_of, kernels_of
from lensbridge.derive.fields import Fields
from lensbridge.derive.found import FoundBlock, undescribed
from lensbridge.derive.heads import Sizes
from lensbridge.derive.layer import Layer, NotEstablished, fitted_scale
from lensbridge.derive.mixer import find_mixer, mixing_call
from lensbridge.derive.moe import EXPERTS_APART, has_experts_apart
from lensbridge.derive.multiples import Multiples
from lensbridge.derive.norms import NormFacts, facts_of, norm_before
from lensbridge.derive.residual import Residual, Step
from lensbridge.derive.trace import Kernel, TracedCall
from lensbridge.spec import Block, MoE, Norms, Opaque


def find_block(layer: Layer, fields: Fields, usual: NormFacts) -> FoundBlock:
    """The description of one layer.

    Args:
        layer: the layer.
        fields: the config.
        usual: what norms compute elsewhere in the model, for a layer without norms.
    """
    steps = Residual(layer, fields).steps()
    if steps is None:
        reason = "no sum of what its modules give leads from the layer's input to its output"
        return FoundBlock(undescribed(usual), missing={"residual": reason})
    try:
        return _Assembly(layer, fields, steps, usual).found()
    except NotEstablished as error:
        return FoundBlock(undescribed(usual), missing={"residual": str(error)})


class _Assembly:
    """Collects the parts of one block."""

    def __init__(self, layer: Layer, fields: Fields, steps: list[Step], usual: NormFacts) -> None:
        self.layer, self.fields, self.steps, self.usual = layer, fields, steps, usual
        self.multiples = Multiples(layer, fields)
        self.mlps = BranchMLPs(layer, fields, self.multiples)
        self.missing: dict[str, str] = {}
        self.block = Block()
        self.sizes: Sizes | None = None
        self.absolute = False
        self.slots: dict[str, TracedCall] = {}
        self.seen: set[str] = set()
        self.attn_reads: Tensor | None = None

    def found(self) -> FoundBlock:
        order = "".join("n" if step.norm is not None else "a" for step in self.steps)
        if "n" not in order:
            self._pre_norm()
        elif order == "an" * (len(order) // 2):
            self._post_norm()
        elif order == "na" * (len(order) // 2):
            self._skip_norm()
        else:
            raise NotEstablished("its norms and sums are in an order that is not known")
        norms = self._norms()
        self._in_scale()
        block = replace(self.block, norms=norms, flattens=self._flattens())
        return FoundBlock(block, self.sizes, self.missing, self.absolute)

    # --- the three arrangements of branches and norms --------------------------------------------

    def _pre_norm(self) -> None:
        groups = [self._branches(step) for step in self.steps]
        kinds = [[self._kind(branch) for branch in group] for group in groups]
        if kinds[1:] == [["mixer"]] and kinds[0] == ["mixer"]:
            kinds[1] = ["mlp"]  # RWKV's second branch reads the position before, too
        self._out_scale()
        if len(groups) == 1 and sorted(kinds[0]) == ["attn", "mlp"]:
            self.block = replace(self.block, residual="parallel")
        elif any(sorted(kind) not in _TOGETHER for kind in kinds):
            raise NotEstablished(f"it adds {_listed(kinds)}")
        for step, group, kind in zip(self.steps, groups, kinds, strict=True):
            if len(group) > 1 and set(kind) == {"mlp"}:
                self._sum_of_experts(group)
            else:
                for branch, role in zip(group, kind, strict=True):
                    self._add(branch, role)
            self._skip_scale(step, kind[0])
        self._check_order(kinds)

    def _post_norm(self) -> None:
        self.block = replace(self.block, residual="post_norm")
        for step, norm in zip(self.steps[::2], self.steps[1::2], strict=True):
            (branch,) = self._alone(step)
            kind = self._kind(branch)
            role = self._add(branch, kind)
            self._skip_scale(step, kind)
            assert norm.norm is not None
            self.slots[f"post_{role}"] = norm.norm

    def _skip_norm(self) -> None:
        self.block = replace(self.block, skip_norm=True)
        for norm, step in zip(self.steps[::2], self.steps[1::2], strict=True):
            (branch,) = self._alone(step)
            kind = self._kind(branch)
            role = self._add(branch, kind)
            self._skip_scale(step, kind)
            assert norm.norm is not None
            self.slots[f"pre_{role}"] = norm.norm

    def _alone(self, step: Step) -> list[Branch]:
        branches = self._branches(step)
        if len(branches) != 1:
            raise NotEstablished("several branches are added at once between its norms")
        return branches

    def _branches(self, step: Step) -> list[Branch]:
        return [
            branch_of(self.layer, self.multiples, step.source, factor, value)
            for factor, value in step.added
        ]

    def _check_order(self, kinds: list[list[str]]) -> None:
        ranks = [min(_ORDER.index(role) for role in kind) for kind in kinds]
        if sorted(ranks) != ranks:
            raise NotEstablished(f"it adds {_listed(kinds)}")

    def _out_scale(self) -> None:
        self.block = replace(self.block, out_scale=self.steps[-1].out_scale)

    def _in_scale(self) -> None:
        """Describe what the norm's output is multiplied by before attention projects it."""
        norm, attn = self.slots.get("pre_attn"), self.block.attn
        if norm is None or norm.output is None or attn is None or self.attn_reads is None:
            return
        read = self.attn_reads.reshape(norm.output.shape)
        factor = fitted_scale(norm.output, read, self.layer.trace.tolerance)
        scale = None if factor is None else self.multiples.of_number(factor).scale(self.fields)
        self.block = replace(self.block, attn=replace(attn, in_scale=scale))

    def _skip_scale(self, step: Step, role: str) -> None:
        """Describe what the stream is multiplied by before a branch is added to it."""
        scale = step.skip.scale(self.fields)
        if scale is None:
            return
        if role not in ("attn", "mixer", "mlp") or "per_layer" in self.seen:
            raise NotEstablished(f"the stream is multiplied by {scale} before {role} is added")
        place = role if getattr(self.block, role) is not None else "mixer"
        part = replace(getattr(self.block, place), skip_scale=scale)
        self.block = replace(self.block, **{place: part})

    # --- one branch ------------------------------------------------------------------------------

    def _kind(self, branch: Branch) -> str:
        kernels = kernels_of(self.layer, branch)
        if kernels:
            return "cross" if _crosses(kernels) else "attn"
        return "mlp" if mixing_call(self.layer, branch) is None else "mixer"

    def _add(self, branch: Branch, role: str) -> str:
        """Describe a branch, or note why it is not described; returns the slot of its norms."""
        slot = {"mixer": "attn"}.get(role, role)
        if role in self.seen and not (role == "mlp" and self.block.residual == "sequential"):
            raise NotEstablished(f"it adds more than one {role}")
        if role in self.seen:
            slot, role = "per_layer", "per_layer"
        self.seen.add(role)
        try:
            reader = getattr(self, f"_add_{role}")(branch)
        except NotEstablished as error:
            self.missing[{"cross": "attn"}.get(role, role)] = str(error)
            reader = self._at_its_boundaries(branch, role, str(error))
            slot = {"cross": "attn"}.get(slot, slot)
        if branch.post is not None:
            self.slots[f"post_{slot}"] = branch.post
        self._pre(branch, slot, reader)
        return slot

    def _at_its_boundaries(self, branch: Branch, role: str, reason: str) -> TracedCall:
        """Describe a branch whose inside is not known as one module that adds to the stream."""
        if role == "mlp":
            found, reader = find_mixer(self.layer, branch, self.fields)
            opaque = Opaque(found.path, written_by=found.written_by, scale=found.scale)
            self.block = replace(self.block, mlp=opaque)
            return reader
        if self.block.mixer is not None or (role == "cross" and self.block.attn is not None):
            raise NotEstablished(reason)
        return self._add_mixer(branch)

    def _pre(self, branch: Branch, slot: str, reader: TracedCall) -> None:
        if slot == "per_layer" or f"pre_{slot}" in self.slots or self.block.skip_norm:
            return
        try:
            norm = norm_before(self.layer, branch.source, reader)
        except NotEstablished as error:
            self.missing[f"norms.pre_{slot}"] = str(error)
            return
        if norm is not None:
            self.slots[f"pre_{slot}"] = norm

    def _add_attn(self, branch: Branch) -> TracedCall:
        found = find_attention(self.layer, branch, self.fields)
        spec = replace(found.spec, overwritten=is_overwritten(branch))
        self.block = replace(self.block, attn=spec)
        self.sizes = found.sizes
        self.absolute = found.absolute
        self.attn_reads = found.reader.inputs[0]
        return found.reader

    def _add_cross(self, branch: Branch) -> TracedCall:
        found: FoundAttention = find_attention(self.layer, branch, self.fields)
        self.block = replace(self.block, cross=found.spec)
        return found.reader

    def _add_mixer(self, branch: Branch) -> TracedCall:
        spec, reader = find_mixer(self.layer, branch, self.fields)
        if any(reader.start < kernel.time < reader.end for kernel in self.layer.kernels):
            why = f"no projection reads what the attention kernel of '{spec.path}' gives, alone"
            self.missing.setdefault("attn", why)
        self.block = replace(self.block, mixer=spec)
        return reader

    def _add_per_layer(self, branch: Branch) -> TracedCall:
        writer = branch.added.producers[-1]
        self.block = replace(self.block, per_layer=self.layer.relative(writer.path))
        return branch.root

    def _add_mlp(self, branch: Branch) -> TracedCall:
        spec, reader = self.mlps.found(branch)
        if isinstance(spec, MoE) and has_experts_apart(self.layer, branch):
            self.missing["experts"] = EXPERTS_APART
        self.block = replace(self.block, mlp=spec)
        return reader

    def _sum_of_experts(self, group: list[Branch]) -> None:
        """Routed experts and a dense MLP that are added in one sum."""
        routed = self.mlps.routed(group)
        self._add(routed, "mlp")
        if isinstance(self.block.mlp, MoE):
            whole = self.mlps.summed(self.block.mlp, routed, group)
            self.block = replace(self.block, mlp=whole)

    def _flattens(self) -> bool:
        """Whether the MLP or its norms run with batch and positions in one axis."""
        norms = [self.slots[slot] for slot in ("pre_mlp", "post_mlp") if slot in self.slots]
        behind = [call.inputs[0] for call in norms]
        if self.block.mlp is not None:
            last = self.steps[-1].added or self.steps[-2].added
            behind += [t for call in last[-1][1].producers for t in call.outputs[:1]]
        return self.block.mlp is not None and any(tensor.ndim < 3 for tensor in behind)

    # --- norms -----------------------------------------------------------------------------------

    def _norms(self) -> Norms:
        facts: dict[str, NormFacts] = {}
        for slot, call in self.slots.items():
            try:
                facts[slot] = facts_of(call, self.fields, self.layer.trace.tolerance)
            except NotEstablished as error:
                self.missing[f"norms.{slot}"] = str(error)
        if len(set(facts.values())) > 1:
            raise NotEstablished("its norms are of more than one kind")
        paths = {slot: self.layer.relative(self.slots[slot].path) for slot in facts}
        kinds = next(iter(facts.values()), self.usual)
        return Norms(
            **{slot: path for slot, path in paths.items() if slot in _SLOTS},
            kind=kinds.kind,
            unit_offset=kinds.unit_offset,
            eps=kinds.eps,
        )


_SLOTS = ("pre_attn", "post_attn", "pre_cross", "post_cross", "pre_mlp", "post_mlp")
_ORDER = ("attn", "mixer", "cross", "mlp")
_TOGETHER = (["attn"], ["mlp"], ["mixer"], ["cross"], ["attn", "mixer"], ["mlp", "mlp"])


def _crosses(kernels: list[Kernel]) -> bool:
    return all(kernel.k.shape[-2] != kernel.q.shape[-2] for kernel in kernels)


def _listed(kinds: list[list[str]]) -> str:
    return ", then ".join(" and ".join(kind) for kind in kinds)
