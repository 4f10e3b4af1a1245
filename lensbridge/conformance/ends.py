"""What a description leaves out between the last layer and what the model returns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lensbridge.conformance.claim import Claim
from lensbridge.conformance.native_calls import NativeCall, inner_modules, watch_calls
from lensbridge.conformance.rows import at_tokens
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
    yield from _of_logits(subject, native.get("logits"))
    yield from _of_poolers(subject, native)
    widths = {stack.sizes.d_model for stack in subject.stacks.values()}
    for value in _inside(native, "last_hidden_state"):
        said = _is_point(subject, value) or value.shape[-1] not in widths  # convolved (GOT-OCR 2)
        said = said or not is_given(subject, value)  # several states side by side (Mllama)
        yield Claim("final_norm", said, "the last_hidden_state that the model returns is no point")


def _of_logits(subject: Subject, logits: torch.Tensor | None) -> Iterator[Claim]:
    if logits is None:
        return
    said = logits.ndim != 3 or "hook_logits" in subject.names  # a classifier's are no point
    yield Claim("hook_logits", said, "the model returns logits, and the description has no point")
    pooled = subject.clean.values.get("hook_pooler_out")
    if pooled is not None and pooled.shape == logits.shape:
        mistaken = subject.expect.are_close(pooled, logits)
        yield Claim("pooler", not mistaken, "its output is the logits that the model returns")


def _of_poolers(subject: Subject, native: Mapping[str, Any]) -> Iterator[Claim]:
    """A pooler_output is a point, where a module returns it: of the model, or of the main stack."""
    told, value = _explains_pooler(subject), native.get("pooler_output")
    if value is not None:
        said = told or "hook_pooler_out" in subject.names or not is_given(subject, value)
        shown = "the model returns pooler_output, and the description has no point for it"
        yield Claim("hook_pooler_out", said, shown)
    core, main = subject.model.native.core, subject.model.native.main
    tower = [one for one in _beside(subject, main) if one not in set(core.children())]
    for inner in _inside(native, "pooler_output"):
        said = told or _is_point(subject, inner) or not is_given(subject, inner, tower)
        yield Claim("pooler", said, "the pooler_output of the main stack is no point")


def _is_point(subject: Subject, value: torch.Tensor) -> bool:
    return any(subject.expect.are_close(one, value) for one in _like(subject, value))


def _inside(output: Mapping[str, Any], ending: str) -> Iterator[torch.Tensor]:
    """Every value so called in an output, and in the outputs of towers inside it."""
    for key, value in output.items():
        if isinstance(value, Mapping):
            yield from _inside(value, ending)
        elif key.endswith(ending) and isinstance(value, torch.Tensor):
            yield value


def _like(subject: Subject, value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The values of points that have the shape of this one, the last layers' first."""
    for name, found in reversed(list(subject.clean.values.items())):
        row = found.shape == (1, *value.shape)  # all images in one row
        if row or found.shape == value.shape:
            yield found[0] if row else found
        elif name in _ends(subject):
            yield from _part_of(subject, found, value)


def _part_of(subject: Subject, end: torch.Tensor, value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The end of the main stack at the tokens' positions, if a value has that shape."""
    if end.ndim == 3 and end.shape[-1] == value.shape[-1]:
        tokens = at_tokens(subject, "", end)
        if tokens.shape == value.shape:
            yield tokens


def is_given(
    subject: Subject, value: torch.Tensor, modules: Sequence[nn.Module] | None = None
) -> bool:
    """Whether a module returns this value: one of these, or any inside the model."""
    found: list[bool] = []

    def compare(call: NativeCall) -> None:
        out = call.output
        same = isinstance(out, torch.Tensor) and value.shape in (out.shape, (1, *out.shape))
        found.append(same and torch.equal(out.reshape(value.shape), value))

    watch_calls(subject, inner_modules(subject) if modules is None else modules, compare)
    return any(found)


def _of_final_norms(subject: Subject) -> Iterator[Claim]:
    """A norm that reads the output of a last layer is described."""
    for at, stack in subject.stacks.items():
        for output in _normed_ends(subject, stack):
            said = _is_point(subject, output)
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
    if subject.model.native.has_unnamed_head and logits is not None:
        shown = "a projection of a value that is a point gives the logits"
        yield Claim("undescribed['unembed']", not _projects_point(subject, logits), shown)
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


def _projects_point(subject: Subject, logits: torch.Tensor) -> bool:
    """Whether the logits are what a projection gives that reads a point."""
    found: list[bool] = []

    def note(call: NativeCall) -> None:
        out = call.output
        gives = isinstance(out, torch.Tensor) and out.shape == logits.shape
        if gives and isinstance(call.module, nn.Linear) and subject.expect.are_close(out, logits):
            found.append(_is_point(subject, call.tensors[0]))

    watch_calls(subject, inner_modules(subject), note)
    return any(found)


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
