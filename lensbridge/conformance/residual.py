"""The residual stream is the sum of what the points add to it, with and without edits."""

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.passes import Block, Pass
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.multiplier import Constant, Multiplier
from lensbridge.native.parts import BlockPart

BRANCHES = ("hook_attn_out", "hook_mixer_out")

POST_NORM = (
    ("hook_resid_mid", "ln1", BRANCHES),
    ("hook_resid_mid_cross", "ln_cross", ("hook_cross_attn_out",)),
    ("hook_resid_post", "ln2", ("hook_mlp_out",)),
)
"""A point of the stream, the norm whose output it is, and what is added before that norm."""


class Sum(NamedTuple):
    """One equation of the stream: a point, and the value that it should have."""

    point: str
    wanted: Tensor
    meaning: str


def sums(block: Block, part: BlockPart) -> Iterator[Sum]:
    """The equations of one block, in data-flow order."""
    if part.residual == "post_norm":
        yield from _post_norm(block, part)
    elif part.residual is not None:
        yield from _added(block, part)
    elif part.pair is not None:
        yield from _reversible(block)


def _reversible(block: Block) -> Iterator[Sum]:
    """Attention is added to the first stream, and the MLP to the second."""
    first, second = block["hook_resid_pre"].unbind(0)
    given = [point for point in BRANCHES if point in block]
    words = " + ".join(["hook_resid_pre[0]", *given])
    yield Sum(block.name("hook_resid_mid"), sum((block[one] for one in given), first), words)
    after = torch.stack([block["hook_resid_mid"], second + block["hook_mlp_out"]])
    words = "hook_resid_mid, and hook_resid_pre[1] + hook_mlp_out"
    yield Sum(block.name("hook_resid_post"), after, words)


def _post_norm(block: Block, part: BlockPart) -> Iterator[Sum]:
    stream = Running(block, "hook_resid_pre")
    before_attn, before_mlp = part.skip_scales
    scales = {"ln1": before_attn, "ln2": before_mlp}
    constants = dict(zip(("ln1", "ln2"), part.sum_biases, strict=True))
    for point, norm, added in POST_NORM:
        if norm in scales:
            stream.times(scales[norm])
        stream.add(*added)
        stream.shift(constants.get(norm, Constant()))
        if point not in block:
            continue
        if f"{norm}.hook_out" in block:  # what that norm reads is checked with the norms
            yield Sum(block.name(point), block[f"{norm}.hook_out"], f"{norm}.hook_out")
            stream = Running(block, point)
        else:
            yield stream.reaches(point)


def _added(block: Block, part: BlockPart) -> Iterator[Sum]:
    stream = Running(block, "ln1.hook_out" if part.skip_norm else "hook_resid_pre")
    before_attn, before_mlp = part.skip_scales
    with_attn, with_mlp = part.sum_biases
    stream.times(before_attn)
    stream.add(*BRANCHES)
    stream.shift(with_attn)
    if "hook_resid_mid" in block:
        yield stream.reaches("hook_resid_mid")
    if "hook_cross_attn_out" in block:
        stream.add("hook_cross_attn_out")
        if "hook_resid_mid_cross" in block:
            yield stream.reaches("hook_resid_mid_cross")
    if part.skip_norm and part.residual == "sequential":
        stream = Running(block, "ln2.hook_out")
    stream.times(before_mlp)
    stream.add("hook_mlp_out", "hook_per_layer_out")
    stream.shift(with_mlp)
    if "hook_resid_post" in block:
        yield stream.reaches("hook_resid_post", _out_scale(part))


def _out_scale(part: BlockPart) -> Tensor | None:
    if part.out_scale is None:
        return None
    module, name = part.out_scale
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return held[name].detach()


class Running:
    """A stream to which branches are added."""

    def __init__(self, block: Block, start: str) -> None:
        self.block = block
        self.value = block[start]
        self.words = [start]

    def times(self, scale: Multiplier) -> None:
        """Multiply what is there so far."""
        if not scale.is_one:
            factor = scale.value(self.value)
            self.value = self.value * (factor.detach() if isinstance(factor, Tensor) else factor)
            self.words = [f"({' + '.join(self.words)}) * {scale}"]

    def shift(self, constant: Constant) -> None:
        """Add what does not depend on the input."""
        if not constant.is_zero:
            self.value = self.value + constant.tensor.detach().to(self.value.device)
            self.words.append(str(constant))

    def add(self, *points: str) -> None:
        """Add the points that the block has."""
        for point in points:
            if point in self.block:
                self.value = self.value + self.block[point]
                self.words.append(point)

    def reaches(self, point: str, factor: Tensor | None = None) -> Sum:
        """The equation for a point of the stream; the next sum starts from that point."""
        words, value = " + ".join(self.words), self.value
        if factor is not None:
            words, value = f"({words}) * the layer's scale", value * factor
        self.value, self.words = self.block[point], [point]
        return Sum(self.block.name(point), value, words)


def check_stream_adds_up(subject: Subject) -> None:
    """The stream changes by what the branches add, and by nothing else."""
    _require_described(subject)
    _hold(subject, subject.clean, subject.clean.blocks)


def _require_described(subject: Subject) -> None:
    if not any(part.adds_up for part in subject.parts.values()):
        raise NotApplicable("how its layers write to the stream is not described")


def _hold(subject: Subject, run: Pass, ats: Collection[str], edited: Collection[str] = ()) -> None:
    for at in ats:
        for point, wanted, meaning in sums(run.blocks[at], subject.parts[at]):
            if point not in edited:
                subject.expect.close(point, run[point], wanted, meaning)


def check_stream_flows_on(subject: Subject) -> None:
    """A block starts with the output of the one before it, and the final norm reads the last."""
    blocks = list(subject.clean.having("hook_resid_pre", "hook_resid_post"))
    for one, other in pairwise(blocks):
        if _stack(one) != _stack(other):
            continue
        name, begins, ends = (
            other.name("hook_resid_pre"),
            other["hook_resid_pre"],
            one["hook_resid_post"],
        )
        if not subject.parts[other.at].begins_anew:
            subject.expect.close(name, begins, ends, one.name("hook_resid_post"))
            continue
        same = begins.shape == ends.shape and subject.expect.are_close(begins, ends)
        goes_on = f"it is {one.name('hook_resid_post')}, and the description says that it is not"
        subject.expect.holds(name, not same, goes_on)
    subject.expect.holds("the blocks", bool(blocks), "no block has both resid_pre and resid_post")


def _stack(block: Block) -> str:
    return block.at.rstrip(".").rpartition(".")[0]


EDITED = (
    "hook_resid_pre",
    "hook_attn_in",
    "ln1.hook_out",
    "hook_attn_out",
    "hook_mixer_out",
    "hook_resid_mid",
    "hook_cross_attn_out",
    "hook_resid_mid_cross",
    "hook_mlp_in",
    "ln2.hook_out",
    "hook_mlp_out",
    "hook_per_layer_out",
    "hook_resid_post",
)


def check_edits_reach_branch_and_skip(subject: Subject) -> None:
    """Under an edit of any term the stream adds up with the edited value, and its readers move."""
    if not any(part.has_branches for part in subject.parts.values()):
        raise NotApplicable("the inside of its layers is not described")
    for block in subject.samples("hook_resid_pre"):
        for point in EDITED:
            if point in block:
                _edit_and_hold(subject, block, point)


READERS = {
    "hook_resid_pre": ("hook_attn_out", "hook_mixer_out", "hook_mlp_out"),
    "hook_attn_in": ("hook_attn_out", "hook_mixer_out"),
    "ln1.hook_out": ("hook_attn_out", "hook_mixer_out"),
    "hook_resid_mid": ("hook_cross_attn_out", "hook_mlp_out"),
    "hook_resid_mid_cross": ("hook_mlp_out",),
    "hook_mlp_in": ("hook_mlp_out",),
    "ln2.hook_out": ("hook_mlp_out",),
}


def _edit_and_hold(subject: Subject, block: Block, point: str) -> None:
    name = block.name(point)
    value = block[point]
    delta = torch.linspace(-1.0, 1.5, value.shape[-1]).to(value)

    def edit(value: Tensor, hook: Hook) -> Tensor:
        return value + delta

    part = subject.parts[block.at]
    gone = _behind(block, part, point)
    points = [n for n in subject.names if n.startswith(block.at) and n not in gone]
    after = subject.read(points, [(name, edit)])
    changed = after.blocks[block.at]
    subject.expect.close(name, changed[point], value + delta, "the edited value, for later readers")
    _hold(subject, after, [block.at], edited={name})
    if part.residual == "post_norm" and point.startswith("ln"):
        return
    for reader in READERS.get(point, ()):
        if reader in block:
            subject.expect.differ(
                block.name(reader), changed[reader], block[reader], f"an edit of {name}"
            )


def _behind(block: Block, part: BlockPart, point: str) -> set[str]:
    """Points whose captured tensor an edit of this one is written into."""
    if part.residual != "post_norm":
        return set()
    shared = {"hook_resid_mid": "ln1.hook_out", "hook_resid_mid_cross": "ln_cross.hook_out"}
    return {block.name(shared[point])} if point in shared else set()
