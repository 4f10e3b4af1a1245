"""The MLP whose result a branch adds: dense, a mixture of experts, or one next to the other."""

from dataclasses import dataclass, replace

from lensbridge.derive.branches import Branch, written_by
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, NotEstablished, is_projection
from lensbridge.derive.mlp import Dense, FoundDense, find_dense
from lensbridge.derive.moe import beside, find_moe, has_experts
from lensbridge.derive.multiples import Multiples
from lensbridge.derive.trace import TracedCall
from lensbridge.spec import MLP, GatedMLP, MoE


@dataclass(frozen=True)
class BranchMLPs:
    """Describes the MLPs of one layer.

    Args:
        layer: the layer.
        fields: the config.
        multiples: finds what the layer multiplies values by.
    """

    layer: Layer
    fields: Fields
    multiples: Multiples

    def found(self, branch: Branch) -> tuple[Dense | MoE, TracedCall]:
        """The MLP whose result a branch adds, and the call that reads the stream.

        Raises:
            NotEstablished: with what could not be found.
        """
        spec: Dense | MoE
        if has_experts(self.layer, branch):
            spec, reader = find_moe(self.layer, branch, self.fields)
        else:
            branch = self._before_a_factor(branch)
            dense = self._dense(branch)
            spec, reader = dense.spec, dense.reader
        scale = branch.factor.scale(self.fields)
        writer = written_by(self.layer, branch, spec.path)
        spec = replace(spec, scale=scale, written_by=writer)
        if isinstance(spec, MLP | GatedMLP) and is_overwritten(branch):
            spec = replace(spec, overwritten=True)
        return spec, reader

    def routed(self, group: list[Branch]) -> Branch:
        """The routed experts among an MLP and experts that are added in one sum.

        Raises:
            NotEstablished: they are not one of each, or are not added alike.
        """
        found = [branch for branch in group if has_experts(self.layer, branch)]
        if len(found) != 1 or len({branch.factor.scale(self.fields) for branch in group}) > 1:
            raise NotEstablished(f"it adds {len(group)} MLPs at once")
        return found[0]

    def summed(self, experts: MoE, routed: Branch, group: list[Branch]) -> MoE:
        """A mixture with the dense MLP that is added in one sum with it."""
        dense = next(branch for branch in group if branch is not routed)
        writers = tuple(self.layer.relative(one.added.producers[-1].path) for one in group)
        return replace(beside(experts, self._dense(dense).spec), written_by=writers)

    def _before_a_factor(self, branch: Branch) -> Branch:
        """The branch as its down projection gives it, if its module multiplies that (Falcon-H1)."""
        if branch.post is not None or any(is_projection(c.module) for c in branch.core.producers):
            return branch
        for value in reversed(self.layer.values):
            downs = [call for call in value.producers if is_projection(call.module)]
            if not downs or not branch.holds(downs[0]):
                continue
            found = self.multiples.between(value, branch.core)
            if found is not None:
                factor = found.times(branch.factor)
                return replace(branch, factor=factor, added=value, core=value, root=downs[0])
        return branch

    def _dense(self, branch: Branch) -> FoundDense:
        downs = [call for call in branch.core.producers if is_projection(call.module)]
        if not downs:
            raise NotEstablished(
                f"'{self.layer.relative(branch.root.path)}' does not end in a projection"
            )
        return find_dense(self.layer, downs[0], branch.source.time, self.fields)


def is_overwritten(branch: Branch) -> bool:
    """Whether the model writes into the tensor that a branch adds."""
    return any(call.overwritten for call in branch.added.producers)
