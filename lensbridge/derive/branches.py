"""Branches: finds the module that computes what is added to the stream."""

from dataclasses import dataclass

from lensbridge.derive.layer import Layer, NotEstablished, Value, is_projection
from lensbridge.derive.multiples import Multiple, Multiples
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.trace import Kernel, TracedCall


@dataclass(frozen=True, eq=False)
class Branch:
    """One value that is added to the stream, and the module that computes it.

    Args:
        source: the state of the stream that it is added to.
        added: the value that is added, before `factor`.
        factor: what multiplies it.
        core: the output of the branch's own modules, before a norm after them.
        post: that norm.
        root: the outermost module that returned `core`.
    """

    source: Value
    added: Value
    factor: Multiple
    core: Value
    post: TracedCall | None
    root: TracedCall

    def holds(self, call: TracedCall) -> bool:
        """Whether a call is that of the branch's outermost module, or inside it."""
        return self.root.start <= call.start and call.end <= self.root.end


def branch_of(
    layer: Layer, multiples: Multiples, source: Value, factor: Multiple, added: Value
) -> Branch:
    """The branch that computes a value that is added."""
    while (found := _before_a_multiple(layer, multiples, source, added)) is not None:
        added, factor = found[0], found[1].times(factor)
    core, post = added, _norm_behind(layer, added)
    if post is not None:
        before = layer.value(post.inputs[0])
        if before is None or not before.producers:
            raise NotEstablished(f"'{layer.relative(post.path)}' norms a sum of several modules")
        core = before
    return Branch(source, added, factor, core, post, _outermost(layer, core))


def _outermost(layer: Layer, value: Value) -> TracedCall:
    """The module that returns a value and contains all others that do; else the last one."""
    whole = [call for call in value.producers if not layer.is_leaf(call)]
    return (whole or value.producers)[-1]


def _norm_behind(layer: Layer, value: Value) -> TracedCall | None:
    """The norm that returns a value, if no module around it returns it too."""
    if not layer.is_leaf(_outermost(layer, value)):
        return None
    leaves = [call for call in value.producers if not is_projection(call.module)]
    return next((call for call in leaves if looks_like_norm(call)), None)


def _before_a_multiple(
    layer: Layer, multiples: Multiples, source: Value, value: Value
) -> tuple[Value, Multiple] | None:
    """The value that a block, or a module for that, multiplies to get another; and by what."""
    if any(not _only_multiplies(layer, call) for call in value.producers):
        return None
    for before in reversed(layer.values):
        if before.producers and source.time < before.time < value.time:
            found = multiples.between(before, value)
            if found is not None and not found.is_one:
                return before, found
    return None


def _only_multiplies(layer: Layer, call: TracedCall) -> bool:
    """Whether a module can do no more than to multiply by parameters, if it does anything."""
    parameters = list(call.module.parameters())
    return layer.is_leaf(call) and len(parameters) < 2 and all(p.ndim < 2 for p in parameters)


def out_projection(layer: Layer, kernel: Kernel) -> tuple[TracedCall | None, bool]:
    """The projection that reads a kernel's output, and whether something is between them."""
    if kernel.z is None or kernel.z.ndim < 3:
        return None, False
    batch, positions = layer.rows
    if kernel.z.ndim != 4 and kernel.z.shape[0] % batch:
        return None, False
    z = kernel.z if kernel.z.ndim == 4 else kernel.z.unflatten(0, (batch, -1))
    if z.shape[0] != batch or z.shape[2] != positions:
        return None, False
    flat = z.transpose(1, 2).flatten(2)
    behind = [
        call
        for call in layer.calls
        if call.start > kernel.time and is_projection(call.module) and call.inputs
    ]
    alike = [call for call in behind if call.inputs[0].numel() == flat.numel()]
    for call in alike:
        given = layer.by_rows(call.inputs[0]).reshape(flat.shape)
        if bool((given - flat).norm() <= layer.trace.tolerance * flat.norm()):
            return call, False
    fitting = [call for call in alike if call.inputs[0].shape[-1] == flat.shape[-1]]
    near = [call for call in fitting if _shares_module(call.path, kernel.path, layer.path)]
    into_stream = [call for call in near if layer.value(call.output) is not None]
    return (into_stream[0], True) if into_stream else (None, False)


def _shares_module(path: str, other: str, layer: str) -> bool:
    """Whether two paths have a module below the layer in common."""
    below = len(layer.split("."))
    return path.split(".")[: below + 1] == other.split(".")[: below + 1]


def kernels_of(layer: Layer, branch: Branch) -> list[Kernel]:
    """The attention kernels whose result a branch adds."""
    found = []
    for kernel in layer.kernels:
        out, _ = out_projection(layer, kernel)
        if out is None:
            inside = branch.root.start < kernel.time < branch.root.end
        else:
            inside = branch.holds(out) or layer.value(out.output) is branch.core
        if inside:
            found.append(kernel)
    return found


def written_by(layer: Layer, branch: Branch, path: str) -> str | None:
    """The module for `written_by`; None where the branch's own module or its norm writes.

    It is the last module that returns the value (such as a dropout after the branch's module),
    unless that runs for another branch as well.
    """
    if branch.post is not None:
        return None
    ran = [call.path for call in layer.calls]
    writers = [call.path for call in branch.core.producers if ran.count(call.path) == 1]
    last = layer.relative((writers or [branch.root.path])[-1])
    return None if last == path else last
