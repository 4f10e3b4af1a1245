"""Layers and embeddings of a stack that a description leaves out beside those it names."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from lensbridge.conformance.native_calls import NativeCall, inner_modules, watch_calls
from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import StackPart


def twins_of(subject: Subject) -> Iterator[tuple[str, str]]:
    """What is left out: a word of the description, and how one sees it in the model."""
    stacks = subject.model.native.stacks
    yield from _layers(subject, stacks)
    yield from _embeddings(subject, stacks)


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
