"""Mixtures of experts: finds the experts, stacked or one by one, and what scores them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lensbridge.derive.branches import Branch
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, NotEstablished, common_parent, is_projection
from lensbridge.derive.mlp import Dense, find_dense, relative_to
from lensbridge.derive.trace import TracedCall
from lensbridge.native.resolve.layers import LISTS
from lensbridge.spec import MLP, GatedMLP, MoE

EXPERTS_APART = "its experts are separate modules, and only values of stacked experts are points"


@dataclass(frozen=True)
class _Experts:
    """The experts of one mixture.

    Args:
        count: how many there are.
        calls: the calls of their modules: one if they are stacked in parameters.
        router: the call that scores them.
        stacked: whether they are stacked.
    """

    count: int
    calls: list[TracedCall]
    router: TracedCall
    stacked: bool

    def hold(self, call: TracedCall) -> bool:
        """Whether a call is that of an expert, or inside it."""
        return any(one.start <= call.start and call.end <= one.end for one in self.calls)


def has_experts(layer: Layer, branch: Branch) -> bool:
    """Whether experts ran in a branch, after a module that scores them."""
    return _experts(layer, branch) is not None


def is_experts(module: nn.Module) -> bool:
    """Whether a module has experts stacked in three-dimensional parameters."""
    return any(
        parameter.ndim == 3 and parameter.shape[0] > 1
        for parameter in module.parameters(recurse=False)
    ) and not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))


def find_moe(layer: Layer, branch: Branch, fields: Fields) -> tuple[MoE, TracedCall]:
    """The mixture of experts whose result a branch adds, and the call that reads the stream."""
    experts = _experts(layer, branch)
    assert experts is not None
    path = layer.relative(branch.root.path)
    tokens = any(not tensor.is_floating_point() for tensor in experts.calls[0].inputs)

    def within(call: TracedCall) -> str:
        return layer.relative(call.path).removeprefix(f"{path}.")

    spec = MoE(
        path,
        router=within(experts.router),
        experts=within(experts.calls[0]) if experts.stacked and tokens else None,
        shared=_shared(layer, experts, branch, fields),
    )
    return spec, branch.root


def has_experts_apart(layer: Layer, branch: Branch) -> bool:
    """Whether the experts of a branch are modules of their own."""
    found = _experts(layer, branch)
    return found is not None and not found.stacked


def _experts(layer: Layer, branch: Branch) -> _Experts | None:
    calls = [call for call in layer.calls if branch.holds(call)]
    stacked = next((call for call in calls if is_experts(call.module)), None)
    if stacked is not None:
        sizes = (p.shape[0] for p in stacked.module.parameters(recurse=False) if p.ndim == 3)
        count = next(sizes)
        router = _scoring(calls, count, stacked.start)
        return None if router is None else _Experts(count, [stacked], router, stacked=True)
    for count, apart in _lists(calls, branch.root):
        before = apart[0].start
        router = _scoring(calls, count, before) or _choosing(calls, count, before)
        if router is not None:
            return _Experts(count, apart, router, stacked=False)
    return None


def _lists(calls: list[TracedCall], root: TracedCall) -> Iterator[tuple[int, list[TracedCall]]]:
    """Lists of modules of one class that have projections, and the calls of these modules."""
    for path, module in root.module.named_modules():
        alike = {type(one) for one in module.children()}
        several = isinstance(module, LISTS) and len(module) > 1 and len(alike) == 1
        if not several or any(is_projection(one) for one in module.children()):
            continue
        paths = {f"{root.path}.{path}.{name}" for name, _ in module.named_children()}
        ran = [call for call in calls if call.path in paths]
        if ran:
            yield len(module), ran


def _scoring(calls: list[TracedCall], count: int, before: int) -> TracedCall | None:
    """The first call that returns one score for each expert."""
    for call in calls:
        scores = any(_scores(tensor, count) for tensor in call.outputs)
        if call.end < before and call.inputs and scores:
            return call
    return None


def _choosing(calls: list[TracedCall], count: int, before: int) -> TracedCall | None:
    """The first call of a module with a row of weights for each expert, which returns indices."""
    for call in calls:
        held = [p.shape[0] for p in call.module.parameters(recurse=False) if p.ndim == 2]
        chosen = any(not tensor.is_floating_point() for tensor in call.outputs)
        if call.end < before and call.inputs and held == [count] and chosen:
            return call
    return None


def _scores(tensor: Tensor, count: int) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] == count


def _shared(layer: Layer, experts: _Experts, branch: Branch, fields: Fields) -> Dense | None:
    path = layer.relative(branch.root.path)
    calls = [call for call in layer.calls if branch.holds(call)]
    for call in calls:
        if experts.hold(call) or not is_projection(call.module) or layer.value(call.output) is None:
            continue
        try:
            found = find_dense(layer, call, branch.root.start, fields, inside=path)
        except NotEstablished:
            continue
        spec = relative_to(found.spec, path)
        if isinstance(spec, MLP | GatedMLP) and _is_overwritten(calls, call):
            spec = replace(spec, overwritten=True)
        return spec
    return None


def _is_overwritten(calls: list[TracedCall], down: TracedCall) -> bool:
    """Whether the output of a projection, or of a module around it, was written to later."""
    around = (call for call in calls if call.start <= down.start and down.end <= call.end)
    same = (call for call in around if call.output is not None and down.output is not None)
    return any(
        call.overwritten and call.output is not None and call.output.shape == down.output.shape
        for call in same
        if down.output is not None
    )


def beside(experts: MoE, shared: Dense) -> MoE:
    """A mixture whose shared MLP is next to it, with paths relative to the module around both."""
    parent = common_parent([experts.path.rpartition(".")[0], shared.path.rpartition(".")[0]])

    def from_parent(path: str) -> str:
        whole = f"{experts.path}.{path}" if experts.path else path
        return whole.removeprefix(f"{parent}.") if parent else whole

    return replace(
        experts,
        path=parent,
        router=from_parent(experts.router),
        experts=from_parent(experts.experts) if isinstance(experts.experts, str) else None,
        shared=relative_to(shared, parent),
    )
