"""The module that makes one vector for a sequence."""

from torch import Tensor

from lensbridge.derive.chain import ModuleChain
from lensbridge.derive.head import find_final_norm
from lensbridge.derive.layer import close, gave
from lensbridge.derive.trace import Trace, TracedCall


def find_pooler(trace: Trace, chain: ModuleChain) -> str | None:
    """The module that returns the model's pooled output, or makes a vector that is not returned."""
    behind = [call for call in trace.calls if call.start > chain.end]
    pooled = trace.pooled if trace.pooled is not None else _vector(trace, chain, behind)
    if pooled is None:
        return None
    return next((call.path for call in behind if gave(call, pooled)), None)


def _vector(trace: Trace, chain: ModuleChain, behind: list[TracedCall]) -> Tensor | None:
    """What modules make, one after another, of the last layer's output at one position."""
    if trace.logits is not None and trace.logits.ndim != 3:
        return None  # a classifier reads one position
    final = find_final_norm(trace, chain)
    ends = [chain.last, *([] if final is None or final.output is None else [final.output])]
    made: Tensor | None = None
    used = False
    for call in sorted(behind, key=lambda one: one.end):  # the innermost first
        given = call.inputs[0] if call.inputs else None
        if given is None or given.ndim != 2 or call.output is None:
            continue
        follows = made is not None and given.shape == made.shape and close(given, made, 1e-6)
        used = used or follows
        if follows and call.output.shape != given.shape:
            continue  # a head that reads the vector
        if follows or any(_is_one_position(given, end) for end in ends):
            made = call.output
    return made if used else None


def _is_one_position(vector: Tensor, stream: Tensor) -> bool:
    if stream.ndim != 3 or vector.shape != stream[:, 0].shape:
        return False
    return any(close(vector, one, 1e-6) for one in stream.unbind(1))
