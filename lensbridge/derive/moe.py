"""Mixtures of experts: finds the module with stacked weights that is called with indices."""

from dataclasses import replace

from torch import Tensor, nn

from lensbridge.derive.branches import Branch
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, NotEstablished, common_parent, is_projection
from lensbridge.derive.mlp import Dense, find_dense, relative_to
from lensbridge.derive.trace import TracedCall
from lensbridge.spec import MLP, GatedMLP, MoE


def has_experts(layer: Layer, branch: Branch) -> bool:
    """Whether a module with stacked weights ran in a branch, after one that scores the experts."""
    calls = [call for call in layer.calls if branch.holds(call)]
    experts = next((call for call in calls if is_experts(call.module)), None)
    return experts is not None and _router(calls, experts) is not None


def is_experts(module: nn.Module) -> bool:
    """Whether a module has experts stacked in three-dimensional parameters."""
    return any(
        parameter.ndim == 3 and parameter.shape[0] > 1
        for parameter in module.parameters(recurse=False)
    ) and not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))


def find_moe(layer: Layer, branch: Branch, fields: Fields) -> tuple[MoE, TracedCall]:
    """The mixture of experts whose result a branch adds, and the call that reads the stream."""
    calls = [call for call in layer.calls if branch.holds(call)]
    experts = next(call for call in calls if is_experts(call.module))
    path = layer.relative(branch.root.path)
    router = _router(calls, experts)
    assert router is not None
    tokens = any(not tensor.is_floating_point() for tensor in experts.inputs)

    def within(call: TracedCall) -> str:
        return layer.relative(call.path).removeprefix(f"{path}.")

    spec = MoE(
        path,
        router=within(router),
        experts=within(experts) if tokens else None,
        shared=_shared(layer, calls, experts, branch, fields),
    )
    return spec, branch.root


def _router(calls: list[TracedCall], experts: TracedCall) -> TracedCall | None:
    """The first call that returns one score for each expert."""
    count = next(p.shape[0] for p in experts.module.parameters(recurse=False) if p.ndim == 3)
    for call in calls:
        scores = any(_scores(tensor, count) for tensor in call.outputs)
        if call.end < experts.start and call.inputs and scores:
            return call
    return None


def _scores(tensor: Tensor, count: int) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] == count


def _shared(
    layer: Layer, calls: list[TracedCall], experts: TracedCall, branch: Branch, fields: Fields
) -> Dense | None:
    path = layer.relative(branch.root.path)
    for call in calls:
        inside = experts.start <= call.start and call.end <= experts.end
        if inside or not is_projection(call.module) or layer.value(call.output) is None:
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
