"""Gradients: the value that a hook returns replaces the activation in the autograd graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lensbridge.conformance.editing import (
    loss_of,
    noise,
    output_in_graph,
    require_native_gradients,
)
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.passes import kind_of
from lensbridge.conformance.subject import Subject
from lensbridge.errors import EditError
from lensbridge.hooks.callbacks import Hook

_MOST = 1_000_000
"""How many numbers of a parameter's gradient are taken, at most."""


def check_detached_hooks_cut_gradients(subject: Subject) -> None:
    """A hook that returns `a.detach()` stops the gradient that flows through the point.

    By the chain rule, the whole gradient is the gradient that remains plus the gradient at the
    point, taken back through the value's graph.
    """
    if subject.is_half:
        raise NotApplicable("gradients in half precision are too coarse to be subtracted")
    require_native_gradients(subject)
    wholes: dict[int, Tensor] = {}
    for name in _one_of_each_kind(subject):
        start, leaves = _leaves(subject, name)
        if start not in wholes:
            wholes[start] = _along(_gradients(loss_of(output_in_graph(subject)), leaves))
        try:
            left, through = _parts(subject, name, leaves)
        except EditError:  # the point refuses edits of this value
            continue
        subject.expect.close(
            f"the gradient with {name} detached, and the gradient through it,",
            left + through,
            wholes[start],
            "together the whole gradient",
            slack=5.0,
        )


def _leaves(subject: Subject, name: str) -> tuple[int, list[nn.Parameter]]:
    """The parameters whose gradients show whether a point cuts them, and the layer they start at.

    For a point of a layer, those of this layer, the one before and all after: a gradient that gets
    there gets further. With all parameters the time would grow with the square of the layers.
    """
    stack = subject.model.native.main
    front, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    start = int(layer) - 1 if front == stack.prefix and layer.isdigit() else 0
    held = dict.fromkeys(p for block in stack.blocks[start:] for p in block.module.parameters())
    near = [parameter for parameter in held if parameter.requires_grad]
    if start > 0 and near:
        return start, near
    return 0, [p for p in subject.hf_model.parameters() if p.requires_grad]


def _one_of_each_kind(subject: Subject) -> list[str]:
    """The last point of each kind: most of the model comes before it."""
    kinds = {
        kind_of(name): name
        for name, point in subject.points.items()
        if point.editable and subject.clean[name].is_floating_point()
    }
    return list(kinds.values())


def _parts(subject: Subject, name: str, leaves: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """The gradient that does not flow through a point, and the one that does."""
    seen: list[Tensor] = []
    leaf: list[Tensor] = []

    def branch_off(value: Tensor, hook: Hook) -> Tensor:
        seen.append(value)
        leaf.append(value.detach().requires_grad_())
        return leaf[0]

    with subject.model.hooks(fwd_hooks=[(name, branch_off)]):
        (at_point,) = _gradients(loss_of(output_in_graph(subject)), leaf)
    with subject.model.hooks(fwd_hooks=[(name, lambda value, hook: value.detach())]):
        left = _gradients(loss_of(output_in_graph(subject)), leaves)
    return _along(left), _along(_gradients(seen[0], leaves, at_point))


def _gradients(of: Tensor, at: Sequence[Tensor], grad: Tensor | None = None) -> tuple[Tensor, ...]:
    if not of.requires_grad:
        return tuple(torch.zeros_like(one) for one in at)
    found = torch.autograd.grad(of, at, grad, allow_unused=True)
    return tuple(
        torch.zeros_like(one) if g is None else g for one, g in zip(at, found, strict=True)
    )


def _along(gradients: Sequence[Tensor]) -> Tensor:
    """One number: the gradient along a direction in these parameters."""
    some = [g.flatten()[:: g.numel() // _MOST + 1] for g in gradients]  # a table may be large
    parts = [(g.double() * noise(g, i).double()).sum().cpu() for i, g in enumerate(some)]
    return torch.stack(parts).sum() / len(parts) ** 0.5
