"""Mixers: modules that mix positions without attention, described by inputs and outputs."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.derive.branches import Branch, written_by
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, NotEstablished
from lensbridge.derive.trace import TracedCall, tensors
from lensbridge.spec import Mixer


def find_mixer(layer: Layer, branch: Branch, fields: Fields) -> tuple[Mixer, TracedCall]:
    """The mixer whose result a branch adds, and its call.

    Raises:
        NotEstablished: the branch has no module of its own.
    """
    call = mixing_call(layer, branch)
    if call is None and branch.root.path != layer.path and computes(layer, branch.root):
        call = branch.root
    if call is None:
        root = layer.relative(branch.root.path)
        raise NotEstablished(
            f"'{root}' gives what is added, and has neither modules nor parameters inside it"
        )
    path = layer.relative(call.path)
    steps = _steps(layer, call)
    behind = None if branch.post is None else layer.relative(branch.post.path)
    writer = behind or written_by(layer, branch, path)
    return Mixer(path, steps, writer, branch.factor.scale(fields)), call


def computes(layer: Layer, call: TracedCall) -> bool:
    """Whether a module has something inside, as a dropout has not: modules or parameters."""
    return not layer.is_leaf(call) or any(True for _ in call.module.parameters())


def mixing_call(layer: Layer, branch: Branch) -> TracedCall | None:
    """The call of a branch in which positions are mixed, if there is one.

    That is its outermost module; where this is a projection or a dropout, the module whose output
    that reads, or one around it, which also adds and norms.
    """
    root, source = branch.root, branch.source
    if root.path == layer.path:
        return None
    if mixes_positions(root):
        return root
    if not layer.is_leaf(root):
        return None
    after = [call for call in layer.calls if source.time <= call.start]
    ends = [call.inputs[0] for call in branch.core.producers if call.inputs]
    before = [call for call in after if any(_gives(call, end) for end in ends)]
    around = [call for call in after if call.start < root.start and root.end < call.end]
    reading = (call for call in [*before, *around] if layer.value(_first(call)) is not None)
    return next((call for call in reading if mixes_positions(call)), None)


def _gives(call: TracedCall, wanted: Tensor) -> bool:
    output = call.output
    return output is not None and output.shape == wanted.shape and torch.equal(output, wanted)


def _first(call: TracedCall) -> Tensor | None:
    return call.inputs[0] if call.inputs else None


def mixes_positions(call: TracedCall) -> bool:
    """Whether a module's output at one position depends on its input at another.

    To find out, it runs once more with the first position's input changed.
    """
    args, kwargs = call.arguments
    try:
        with torch.no_grad():
            plain, changed = (
                next(tensors(call.module(*_first_changed(args, by), **_kw(kwargs, by))))
                for by in (0.0, 1.0)
            )
    except Exception:  # a module that cannot run by itself is not a known MLP
        return True
    if plain.ndim != 3 or changed.shape != plain.shape:
        return False
    rest = plain[:, 1:].double()
    return bool((changed[:, 1:] - rest).norm() > 1e-4 * rest.norm())


def _kw(kwargs: dict[str, Any], by: float) -> dict[str, Any]:
    return {name: _moved(value, by) for name, value in kwargs.items()}


def _first_changed(args: tuple[Any, ...], by: float) -> tuple[Any, ...]:
    return tuple(_moved(value, by) for value in args)


def _moved(value: Any, by: float) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
        value = value.clone()
        value[:, 0] += by
    return value


def _steps(layer: Layer, call: TracedCall) -> tuple[str, ...]:
    """The direct children that ran once and returned something for each position."""
    root = call.path
    inside = [c for c in layer.below(root) if "." not in c.path.removeprefix(f"{root}.")]
    once = [c for c in inside if sum(other.path == c.path for other in inside) == 1]
    return tuple(c.path.removeprefix(f"{root}.") for c in once if _by_position(layer, c))


def _by_position(layer: Layer, call: TracedCall) -> bool:
    batch, positions = layer.shape[:2]
    shape = () if call.output is None else call.output.shape
    return len(shape) == 3 and shape[0] == batch and positions in shape[1:]
