"""Layers and embeddings of a stack that a description leaves out beside those it names."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lensbridge.conformance.ends import is_norm
from lensbridge.conformance.native_calls import NativeCall, inner_modules, watch_calls
from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import StackPart


def twins_of(subject: Subject) -> Iterator[tuple[str, str]]:
    """What is left out: a word of the description, and how one sees it in the model."""
    stacks = subject.model.native.stacks
    yield from _layers(subject, stacks)
    yield from _embeddings(subject, stacks)
    for stack in stacks:
        yield from _before_layers(subject, stack)


def _layers(subject: Subject, stacks: tuple[StackPart, ...]) -> Iterator[tuple[str, str]]:
    """Layers that run, of the class of a layer that is described."""
    blocks = [block for stack in stacks for block in stack.blocks if block.members is None]
    known = {block.module for block in blocks}
    classes = {type(module) for module in known}
    inside = {one for module in known for one in module.modules()}
    others = [m for m in inner_modules(subject) if type(m) in classes and m not in inside]
    ran: dict[nn.Module, None] = {}
    watch_calls(subject, others, lambda call: ran.setdefault(call.module))
    for module in ran:
        path = subject.model.native.paths.get(module, "")
        yield "towers", f"{path} is a {type(module).__name__}, which runs and is in no stack"


def _embeddings(subject: Subject, stacks: tuple[StackPart, ...]) -> Iterator[tuple[str, str]]:
    """Embeddings whose output is what the first layer of a stack reads."""
    named = {stack.embed for stack in stacks}
    for stack in [one for one in stacks if one.embed is None]:
        first = subject.clean.values.get(f"{stack.prefix}.0.hook_resid_pre")
        tables = [m for m in inner_modules(subject) if isinstance(m, nn.Embedding)]
        others = [table for table in tables if table not in named]
        found: list[nn.Module] = []

        def see(call: NativeCall, first: Any = first, found: list[nn.Module] = found) -> None:
            if call.output.shape == first.shape and subject.expect.are_close(call.output, first):
                found.append(call.module)

        watch_calls(subject, others if first is not None else [], see)
        for module in found[:1]:
            path = subject.model.native.paths.get(module, "")
            yield "embed", f"{path} gives what the first layer of {stack.prefix} reads"


def _before_layers(subject: Subject, stack: StackPart) -> Iterator[tuple[str, str]]:
    """A norm that gives the first layer's input, and a table of positions that is read."""
    first = subject.clean.values.get(f"{stack.prefix}.0.hook_resid_pre")
    rotary = any(block.attn is not None and block.attn.rotary for block in stack.blocks)
    stacks = subject.model.native.stacks
    named = {*(one.embed for one in stacks), *(one.pos_embed for one in stacks)}
    lengths = _lengths(subject, stack, first)
    found: dict[str, nn.Module] = {}

    def see(call: NativeCall) -> None:
        if stack.ln_embed is None and first is not None and _starts(subject, call, first):
            found["embed_norm"] = call.module
        table = isinstance(call.module, nn.Embedding) and call.module not in named
        if table and stack.pos_embed is None and not rotary and _counts_up(call, lengths):
            found["pos_embed"] = call.module

    watch_calls(subject, _outside(subject), see)
    for word, module in found.items():
        path = subject.model.native.paths.get(module, type(module).__name__)
        yield word, f"{path} makes what the first layer of {stack.prefix} reads"


def _outside(subject: Subject) -> list[nn.Module]:
    """Modules without others inside, that are not inside a layer or a described embedding."""
    holders = [part.module for part in subject.parts.values()]
    holders += [one.embed for one in subject.model.native.stacks if one.embed is not None]
    inside = {one for module in holders for one in module.modules() if one is not module}
    return [m for m in inner_modules(subject) if m not in inside and not any(m.children())]


def _starts(subject: Subject, call: NativeCall, first: Tensor) -> bool:
    """Whether a norm's output is the stream before the first layer, or the end of each row."""
    output = call.output
    if not isinstance(output, Tensor) or output.ndim != 3 or first.ndim != 3:
        return False
    end = first[:, -output.shape[1] :]
    alike = output.shape == end.shape and subject.expect.are_close(output, end)
    return alike and len(call.tensors) == 1 and is_norm(call, subject)


def _lengths(subject: Subject, stack: StackPart, first: Tensor | None) -> set[int]:
    """How many positions a stack can have that reads ids; empty for another one."""
    at = next(at for at, one in subject.stacks.items() if one is stack)
    ids = subject.ids_of(at)
    if ids is None or first is None:
        return set()
    return {ids.shape[-1], first.shape[1]}


def _counts_up(call: NativeCall, lengths: set[int]) -> bool:
    """Whether a table is read at consecutive rows, one for each position if that is known."""
    ids = next(iter(call.tensors), None)
    if ids is None or ids.is_floating_point() or ids.shape[-1] < 3:
        return False
    if lengths and ids.shape[-1] not in lengths:
        return False
    return bool((ids.diff(dim=-1) == 1).all())
