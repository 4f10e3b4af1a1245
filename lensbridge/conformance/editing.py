"""Edits in general: in place or returned, and gradients through them."""

from collections.abc import Callable

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.passes import kind_of
from lensbridge.conformance.subject import Subject
from lensbridge.errors import EditError
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.parts import StackPart

SILENT = ("hook_pooler_out", "hook_scale")
"""Points that may not change the compared output, because a later norm removes a factor."""


def noise(value: Tensor, seed: int = 5) -> Tensor:
    """Random numbers of order one in the shape of a value, the same in every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)


def in_place(value: Tensor, hook: Hook) -> None:
    """An edit that changes the value in place."""
    value.mul_(1.25).add_(noise(value))


def returned(value: Tensor, hook: Hook) -> Tensor:
    """The same edit, returned as a new value."""
    return value.mul(1.25).add(noise(value))


def check_in_place_equals_returned(subject: Subject) -> None:
    """Editing in place and returning a new value do the same, and both change the output."""
    kinds: dict[str, list[str]] = {}
    for name, point in subject.points.items():
        if point.editable and subject.clean[name].is_floating_point():
            kinds.setdefault(kind_of(name), []).append(name)
    frozen = _frozen_fronts(subject)
    for kind, names in kinds.items():
        try:
            one = subject.run([(name, in_place) for name in names])
        except EditError:  # the point refuses edits of this value
            continue
        other = subject.run([(name, returned) for name in names])
        subject.expect.same(
            f"the output with an edit of {kind} in place",
            one,
            other,
            "that with the same edit returned",
        )
        if not kind.endswith(SILENT) and not kind.startswith(frozen):
            subject.expect.differ("the output", one, subject.clean.output, f"an edit of {kind}")


def _frozen_fronts(subject: Subject) -> tuple[str, ...]:
    """How names of stacks begin that are not trained with the others, because their outputs decide
    something instead of being computed with (BLT's patches), which an edit need not change.
    """
    native = subject.model.native
    if not any(parameter.requires_grad for parameter in native.core.parameters()):
        return ()
    frozen = [tower for tower in native.towers if not _is_trained(tower)]
    return tuple(native.front_of(tower) for tower in frozen)


def _is_trained(stack: StackPart) -> bool:
    layers = (block.module for block in stack.blocks)
    return any(parameter.requires_grad for layer in layers for parameter in layer.parameters())


def check_gradients_are_autograds(subject: Subject) -> None:
    """The gradient at a point, along a direction, is the derivative of an edit along it."""
    names = [
        name
        for name, point in subject.points.items()
        if point.editable
        and subject.clean[name].is_floating_point()
        and not name.endswith("hook_attn_scores")
    ]
    if not subject.has_head:
        names = [name for name in names if not name.endswith(SILENT)]
    wanted, output = _derivatives(subject, names)
    grads: dict[str, Tensor] = {}

    def keep(grad: Tensor, hook: Hook) -> None:
        grads[hook.name] = grad.detach().clone()

    found_output = _backward(subject, [(name, keep) for name in names])
    subject.expect.same(
        "the output with gradients at every point", found_output, output, "that of the edited run"
    )
    for name, derivative in wanted.items():
        if name in grads:
            along = (grads[name].double() * noise(subject.clean[name]).double()).sum()
            subject.expect.close(
                f"the gradient at {name}, along a direction,",
                along,
                derivative,
                "the derivative of an edit along it",
            )


def loss_of(output: Tensor) -> Tensor:
    """A number that depends on every entry of an output."""
    return (output.double() * noise(output, 7).double()).sum() / output.numel() ** 0.5


def _derivatives(subject: Subject, names: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """d loss / d step for an edit of `step` times a direction at each point, at step zero."""
    steps = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)

    def along(i: int) -> Callable[[Tensor, Hook], Tensor]:
        return lambda value, hook: value + steps[i].to(value) * noise(value)

    require_native_gradients(subject)
    with subject.model.hooks(fwd_hooks=[(name, along(i)) for i, name in enumerate(names)]):
        output = output_in_graph(subject)
    (grad,) = torch.autograd.grad(loss_of(output), steps)
    return dict(zip(names, grad, strict=True)), output.detach()


def require_native_gradients(subject: Subject) -> None:
    """Refuse a model that has no gradients.

    Raises:
        NotApplicable: it has none; the message says why.
    """
    leaves = [p for p in subject.hf_model.parameters() if p.requires_grad]
    if not leaves:
        raise NotApplicable("no parameter requires a gradient")
    try:
        torch.autograd.grad(loss_of(output_in_graph(subject)), leaves, allow_unused=True)
    except (RuntimeError, AssertionError) as error:  # Reformer asserts that it is in training
        raise NotApplicable(f"the bare model has no backward pass: {error}") from error


def _backward(subject: Subject, hooks: list[tuple[str, Callable[[Tensor, Hook], None]]]) -> Tensor:
    leaves = [p for p in subject.hf_model.parameters() if p.requires_grad]
    with subject.model.hooks(bwd_hooks=hooks):
        output = output_in_graph(subject)
        torch.autograd.grad(loss_of(output), leaves, allow_unused=True)
    return output.detach()


def output_in_graph(subject: Subject) -> Tensor:
    """The output of a pass, with its graph."""
    found: list[Tensor] = []
    handle = subject.hf_model.register_forward_hook(
        lambda m, args, out: found.append(subject.live(out))
    )
    try:
        with torch.enable_grad():
            subject.call(subject.inputs)
    finally:
        handle.remove()
    return found[-1]
