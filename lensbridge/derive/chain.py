"""Module chains: the lists of layers that the stream passes through."""

from dataclasses import dataclass

from torch import Tensor, nn

from lensbridge.derive.layer import close
from lensbridge.derive.trace import Trace, TracedCall
from lensbridge.native.resolve.layers import LISTS
from lensbridge.native.wrappers import named_parts


@dataclass(eq=False)
class ModuleChain:
    """A list of layers, each of which reads the output of the one before."""

    path: str
    calls: list[TracedCall]
    given: list[Tensor]

    @property
    def start(self) -> int:
        return self.calls[0].start

    @property
    def end(self) -> int:
        return self.calls[-1].end

    @property
    def last(self) -> Tensor:
        output = self.calls[-1].output
        assert output is not None
        return output


@dataclass
class Search:
    """The chains that were found, and why each other list of modules is not one."""

    chains: list[ModuleChain]
    refused: dict[str, str]


def find_chains(trace: Trace) -> Search:
    """Every list of layers that carries a stream, in the order in which they ran."""
    found = Search([], {})
    for path, module in named_parts(trace.model):
        if isinstance(module, LISTS) and len(module):
            chain = _chain(trace, path, module)
            if isinstance(chain, ModuleChain):
                found.chains.append(chain)
            else:
                found.refused[path] = chain
    outer = [c for c in found.chains if not any(_inside(c, other) for other in found.chains)]
    found.chains = sorted(outer, key=lambda chain: chain.start)
    return found


def _inside(chain: ModuleChain, other: ModuleChain) -> bool:
    return chain.path.startswith(f"{other.path}.")


def _chain(trace: Trace, path: str, layers: nn.Module) -> ModuleChain | str:
    runs = [trace.of(f"{path}.{name}") for name, _ in layers.named_children()]
    times = {len(here) for here in runs}
    for i, here in enumerate(runs):
        if len(times) > 1 or not here:
            return f"layer {i} of '{path}' ran {len(here)} times in one pass"
    calls = sorted((call for here in runs for call in here), key=lambda call: call.start)
    alone = len(calls) < 2 or not isinstance(layers, nn.ModuleList)
    if alone and not all(_can_stand_alone(trace, call) for call in calls):
        return f"'{path}' has one module, which is not a layer"
    return _linked(path, calls)


def _linked(path: str, calls: list[TracedCall]) -> ModuleChain | str:
    """The calls as a chain, if each reads the output of the one before."""
    given = []
    for i, call in enumerate(calls):
        before = calls[i - 1].output if i else call.output
        if before is None or call.output is None:
            return f"layer {i} of '{path}' returns no tensor"
        wanted = _given(call, before if i else None, call.output)
        if wanted is None:
            return f"layer {i} of '{path}' does not read the output of layer {i - 1}"
        given.append(wanted)
    return ModuleChain(path, calls, given)


def _can_stand_alone(trace: Trace, call: TracedCall) -> bool:
    return len(trace.within(call.path)) >= 4


def _given(call: TracedCall, before: Tensor | None, like: Tensor) -> Tensor | None:
    """The stream among a layer's arguments; for the first layer, the first of the right shape."""
    for tensor in call.inputs:
        if not tensor.is_floating_point() or tensor.shape != like.shape or tensor.ndim < 3:
            continue
        if before is None or (before.shape == tensor.shape and close(tensor, before, 1e-6)):
            return tensor
    return None


def main_chain(trace: Trace, chains: list[ModuleChain], head: nn.Module | None) -> ModuleChain:
    """The chain that the head reads: the last one that ends before the head runs."""
    heads = [call for call in trace.calls if head is not None and call.module is head]
    if heads:
        before = [chain for chain in chains if chain.end < heads[-1].start]
        return max(before or chains, key=lambda chain: chain.end)
    return max(chains, key=lambda chain: (len(chain.calls), chain.end))
