"""Layers of which it is not described how their branches write to the stream.

What such a layer leaves out is left out for a reason, and the norms before its branches are named.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lensbridge.conformance.native_calls import NativeCall, watch_calls
from lensbridge.conformance.passes import Block
from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import BlockPart, MoEPart, OpaquePart
from lensbridge.native.resolve.head import native_head

BRANCHES = ("hook_attn_out", "hook_mixer_out", "hook_mlp_out")
READERS = {"ln1": ("hook_attn_in", "mixer.hook_in"), "ln2": ("hook_mlp_in",)}
"""What branches read, where they have no norm in a slot."""


class Lack(NamedTuple):
    """Something that a description leaves out: its name, and how one sees that it should not."""

    what: str
    shown: str


def lacks_of(subject: Subject) -> Iterator[Lack]:
    """What the layers leave out without a reason, or although it could be said."""
    reached = subject.clean.blocks
    unsaid = {at: part for at, part in subject.parts.items() if not part.adds_up}
    unsaid = {at: part for at, part in unsaid.items() if at in reached}
    yield from _without_reason(subject)
    for at in unsaid:
        if _is_plain_sum(subject, reached[at]):
            shown = "it is not said, and the layer adds what its branches give to its input"
            yield Lack(f"{at}residual", shown)
    yield from _norms(subject, unsaid)
    yield from _others(subject, unsaid)


def _without_reason(subject: Subject) -> Iterator[Lack]:
    """Parts of the main stack's layers that are left out where `residual` is, and not explained."""
    main = subject.model.native.main
    reasons = subject.model.architecture.undescribed
    lacking = {
        word
        for part in main.blocks
        if not part.adds_up
        for word, there in (
            ("residual", False),
            ("attn", _mixes(part)),
            ("mixer", _mixes(part) or not part.has_branches),
            ("mlp", part.mlp is not None),
        )
        if not there
    }
    for word in sorted(lacking - set(reasons)):
        yield Lack(word, f"it is not described, and undescribed[{word!r}] does not say why")
    for word in reasons:
        shown = "every layer has this part described"
        if word == "pooler":
            said, shown = "hook_pooler_out" in subject.names, "it is described"
        elif word == "unembed":
            said, shown = _names_head(subject), "the head is described"
        else:
            said = all(_says(part, word) for part in main.blocks)
        if said:
            yield Lack(f"undescribed[{word!r}]", shown)


def _names_head(subject: Subject) -> bool:
    """Whether the head that transformers knows is described. Other classes may have others."""
    native = subject.model.native
    return native.unembed is not None and native.unembed.module is native_head(native.core)


def _says(part: BlockPart, word: str) -> bool:
    """Whether a layer has what a word of `undescribed` is about, if it is about any."""
    if word in ("residual", "attn"):
        return getattr(part, word) is not None
    if word == "experts":
        return not isinstance(part.mlp, MoEPart) or part.mlp.experts is not None
    if word == "mlp":
        return part.mlp is not None and not isinstance(part.mlp, OpaquePart)
    return word != "mixer" or _mixes(part)


def _mixes(part: BlockPart) -> bool:
    return part.attn is not None or part.mixer is not None


def _is_plain_sum(subject: Subject, block: Block) -> bool:
    """Whether a layer's output is its input plus what its branches give."""
    given = [block[point] for point in BRANCHES if point in block]
    stream, after = block["hook_resid_pre"], block["hook_resid_post"]
    if not given or any(one.shape != stream.shape for one in given):
        return False
    return subject.expect.are_close(after, stream + sum(given))


def _norms(subject: Subject, parts: dict[str, BlockPart]) -> Iterator[Lack]:
    """Norms whose output is what a branch reads, and that are not described."""
    for at, part in parts.items():
        block = subject.clean.blocks[at]
        read = {
            slot: block[point]
            for slot, points in READERS.items()
            for point in points
            if slot not in part.norms and point in block
        }
        calls: list[NativeCall] = []
        watch_calls(subject, _leaves(part.module) if read else (), calls.append)
        for slot, value in read.items():
            norm = next((one.module for one in calls if _is_norm_for(one, value)), None)
            if norm is not None:
                path = subject.model.native.paths.get(norm, type(norm).__name__)
                yield Lack(f"{at}{slot}", f"the branch reads the output of the norm '{path}'")


def _others(subject: Subject, parts: dict[str, BlockPart]) -> Iterator[Lack]:
    """Modules of layers that are like those of described branches, and that no stack describes.

    Several stacks may describe parts of the same layers (LongCat Flash).
    """
    if {"attn", "mlp"} & set(subject.model.architecture.undescribed):
        return
    branches = [one for part in parts.values() for one in _described(part)]
    said = {inner for one in branches for inner in one.modules()}
    kinds = {type(one) for one in branches}
    for layer in dict.fromkeys(part.module for part in parts.values()):
        for path, module in layer.named_modules():
            known = module in said or module is layer
            if not known and (type(module) in kinds or _holds_experts(module)):
                at = f"{subject.model.native.paths.get(layer, '')}.{path}"
                yield Lack(at, f"no stack describes this {type(module).__name__}")


def _described(part: BlockPart) -> list[nn.Module]:
    branches = (part.attn, part.cross, part.mixer, part.mlp)
    return [one.module for one in branches if one is not None]


def _holds_experts(module: nn.Module) -> bool:
    """Whether it has the weights of several experts, one after another."""
    down = module._parameters.get("down_proj")
    return down is not None and down.ndim == 3


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [one for one in module.modules() if not any(True for _ in one.children())]


def _is_norm_for(call: NativeCall, value: Tensor) -> bool:
    """Whether a call gave this value, and a larger input would have given the same."""
    given, out = next(iter(call.tensors), None), call.output
    if given is None or not isinstance(out, Tensor) or given.shape != out.shape:
        return False
    on_grid = out.ndim == 4 and out.shape[-1:] == value.shape[-1:]
    out_rows = out.flatten(1, 2) if on_grid and value.ndim == 3 else out
    if out_rows.shape != value.shape or not torch.equal(out_rows, value):
        return False
    with torch.no_grad():
        larger = type(call.module).forward(call.module, given * 16)
    return _near(larger, out, 0.03) and not _near(given, out, 1e-3)


def _near(one: Tensor, other: Tensor, share: float) -> bool:
    return bool((one - other).norm() <= share * (one.norm() + other.norm()))
