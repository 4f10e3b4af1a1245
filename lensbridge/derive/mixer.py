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
    if branch.root.path == layer.path or not computes(layer, branch.root):
        raise NotEstablished(
            f"'{layer.relative(branch.root.path)}' has neither modules nor parameters inside it"
        )
    path = layer.relative(branch.root.path)
    steps = _steps(layer, branch)
    behind = None if branch.post is None else layer.relative(branch.post.path)
    writer = behind or written_by(layer, branch, path)
    return Mixer(path, steps, writer, branch.factor.scale(fields)), branch.root


def computes(layer: Layer, call: TracedCall) -> bool:
    """Whether a module has something inside, as a dropout has not: modules or parameters."""
    return not layer.is_leaf(call) or any(True for _ in call.module.parameters())


def mixes_positions(branch: Branch) -> bool:
    """Whether a branch's output at one position depends on its input at another.

    To find out, its outermost module runs once more with the first position's input changed.
    """
    args, kwargs = branch.root.arguments
    try:
        with torch.no_grad():
            plain, changed = (
                next(tensors(branch.root.module(*_first_changed(args, by), **_kw(kwargs, by))))
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


def _steps(layer: Layer, branch: Branch) -> tuple[str, ...]:
    """The direct children that ran once and returned something for each position."""
    root = branch.root.path
    inside = [c for c in layer.below(root) if "." not in c.path.removeprefix(f"{root}.")]
    once = [c for c in inside if sum(other.path == c.path for other in inside) == 1]
    return tuple(c.path.removeprefix(f"{root}.") for c in once if _by_position(layer, c))


def _by_position(layer: Layer, call: TracedCall) -> bool:
    batch, positions = layer.shape[:2]
    shape = () if call.output is None else call.output.shape
    return len(shape) == 3 and shape[0] == batch and positions in shape[1:]
