"""What a description leaves out between the last layer and what the model returns."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lensbridge.conformance.claim import Claim
from lensbridge.conformance.native_calls import NativeCall, inner_modules, watch_calls
from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import StackPart


def claims_of_ends(subject: Subject) -> Iterator[Claim]:
    """Outputs, final norms, what the head reads and the pooler are described."""
    yield from _of_output(subject)
    yield from _of_final_norms(subject)
    yield from _of_head(subject)


def _of_output(subject: Subject) -> Iterator[Claim]:
    with torch.no_grad():
        native: Any = subject.call(subject.inputs)
    if not isinstance(native, Mapping):
        native = {"logits": subject.model.native.logits(native)}
    for key, point in (("logits", "hook_logits"), ("pooler_output", "hook_pooler_out")):
        shown = f"the model returns {key}, and the description has no point for it"
        value = native.get(key)
        pooled = value is not None and key == "logits" and value.ndim != 3  # of a classifier
        computed = value is not None and key == "pooler_output" and not is_given(subject, value)
        told = key == "pooler_output" and _explains_pooler(subject)
        said = value is None or pooled or computed or told or point in subject.names
        yield Claim(point, said, shown)
    for value in _last_states(native):
        said = any(subject.expect.are_close(one, value) for one in _like(subject, value))
        said = said or not is_given(subject, value)  # several states side by side (Mllama)
        yield Claim("final_norm", said, "the last_hidden_state that the model returns is no point")


def _last_states(output: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Every last_hidden_state in an output, and in the outputs of towers inside it."""
    for key, value in output.items():
        if isinstance(value, Mapping):
            yield from _last_states(value)
        elif key.endswith("last_hidden_state") and isinstance(value, torch.Tensor):
            yield value


def _like(subject: Subject, value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The values of points that have the shape of this one, the last layers' first."""
    for found in reversed(list(subject.clean.values.values())):
        row = found.shape == (1, *value.shape)  # all images in one row
        if row or found.shape == value.shape:
            yield found[0] if row else found


def is_given(subject: Subject, value: torch.Tensor) -> bool:
    """Whether a module inside the model returns this value."""
    found: list[bool] = []

    def compare(call: NativeCall) -> None:
        out = call.output
        same = isinstance(out, torch.Tensor) and value.shape in (out.shape, (1, *out.shape))
        found.append(same and torch.equal(out.reshape(value.shape), value))

    watch_calls(subject, inner_modules(subject), compare)
    return any(found)


def _of_final_norms(subject: Subject) -> Iterator[Claim]:
    """A norm that reads the output of a last layer is described."""
    for at, stack in subject.stacks.items():
        for output in _normed_ends(subject, stack):
            said = any(subject.expect.are_close(one, output) for one in _like(subject, output))
            shown = "a norm reads the last layer's output, and no point is its output"
            yield Claim(f"{at}final_norm", said, shown)


def _normed_ends(subject: Subject, stack: StackPart) -> list[torch.Tensor]:
    """The outputs of norms beside the layers that read the end of a stack."""
    end = subject.clean.values.get(f"{stack.prefix}.{len(stack.blocks) - 1}.hook_resid_post")
    if end is None:
        return []
    leaves = [m for m in _beside(subject, stack) if not any(m.children())]
    found: list[torch.Tensor] = []

    def note(call: NativeCall) -> None:
        given = call.tensors
        alike = len(given) == 1 and given[0].shape == end.shape
        if alike and subject.expect.are_close(given[0], end) and is_norm(call, subject):
            found.append(call.output)

    watch_calls(subject, leaves, note)
    return found


def _beside(subject: Subject, stack: StackPart) -> list[nn.Module]:
    """The modules beside a list of layers, and beside each module that the list is in."""
    names = stack.path.split(".")
    holders = [".".join(names[:i]) for i in range(len(names))]
    found = [subject.model.native.core.get_submodule(path) for path in holders]
    return [module for one in found for module in one.children()]


def is_norm(call: NativeCall, subject: Subject) -> bool:
    """Whether a module gives the same output for twice its input, and does change it."""
    (given,), output = call.tensors, call.output
    if not isinstance(output, torch.Tensor) or output.shape != given.shape:
        return False
    same = subject.expect.are_close(call.module.forward(given * 2), output)
    return same and not subject.expect.are_close(given, output)


def _of_head(subject: Subject) -> Iterator[Claim]:
    """What the head reads is a point, and so is the vector that is made of a sequence."""
    unembed, logits = subject.model.native.unembed, subject.clean.values.get("hook_logits")
    if logits is not None and logits.ndim != 3:
        return
    shown = "a module makes one vector of the last layer's output at one position"
    said = "hook_pooler_out" in subject.names or _explains_pooler(subject)
    said = said or not _makes_one_vector(subject)
    yield Claim("pooler", said, shown)
    if unembed is None or logits is None:
        return
    read: list[torch.Tensor] = []
    watch_calls(subject, [unembed.module], lambda call: read.extend(call.tensors[:1]))
    scale = subject.model.native.head_scale
    for value in read:
        if value.ndim == 3 and value.shape[:2] == logits.shape[:2]:
            said = any(
                subject.expect.are_close(one * scale, value) for one in _like(subject, value)
            )
            yield Claim("head_hidden", said, "the head reads a value that is not a point")


def _explains_pooler(subject: Subject) -> bool:
    return "pooler" in subject.model.architecture.undescribed


def _makes_one_vector(subject: Subject) -> bool:
    """Whether a module reads the main stack's end at one position, and another reads its output."""
    ends = [one for name in _ends(subject) if (one := subject.clean.values.get(name)) is not None]
    made: list[torch.Tensor] = []
    used: list[bool] = []

    def note(call: NativeCall) -> None:
        vectors = [one for one in call.tensors if one.ndim == 2]
        used.extend(any(one is other for other in made) for one in vectors)
        taken = any(_is_one_position(subject, one, end) for one in vectors for end in ends)
        if taken and isinstance(call.output, torch.Tensor):
            made.append(call.output)

    watch_calls(subject, inner_modules(subject), note)
    return any(used)


def _ends(subject: Subject) -> tuple[str, ...]:
    main = subject.model.native.main
    return "ln_final.hook_out", f"{main.prefix}.{len(main.blocks) - 1}.hook_resid_post"


def _is_one_position(subject: Subject, vector: torch.Tensor, end: torch.Tensor) -> bool:
    if end.ndim != 3 or vector.shape != end[:, 0].shape:
        return False
    return any(subject.expect.are_close(vector, one) for one in end.unbind(1))
