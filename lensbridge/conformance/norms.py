"""Norms: their inputs, their outputs, and the branches that read them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.passes import Block, Pass
from lensbridge.conformance.rows import at_tokens
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.norm import Norm
from lensbridge.native.parts import BlockPart

READ_BEFORE = {"ln1": "hook_attn_in", "ln_cross": "hook_resid_mid", "ln2": "hook_mlp_in"}
"""The point that a norm before a branch reads."""

SUMMED = {
    "ln1": ("hook_attn_out", "hook_mixer_out"),
    "ln_cross": ("hook_cross_attn_out",),
    "ln2": ("hook_mlp_out",),
}
"""Norms of sums, in order, and what is added to the stream before each."""


def every_norm(subject: Subject) -> Iterator[tuple[str, Norm, Tensor | None]]:
    """Every norm's prefix, the norm, and the value that it should read, if that is a point."""
    run = subject.clean
    for at, block in run.blocks.items():
        for slot, norm in subject.parts[at].norms.items():
            if f"{slot}.hook_out" in block:
                yield f"{at}{slot}", norm, _read_by(block, slot, subject.parts[at])
    for at, stack in subject.stacks.items():
        if stack.ln_final is not None and f"{at}ln_final.hook_out" in run.values:
            last = f"{stack.prefix}.{len(stack.blocks) - 1}.hook_resid_post"
            alone = stack.residual_axes == "b p m"  # of several streams it reads a mixture
            read = run.values.get(last)
            if read is not None and stack.blocks[-1].pair is not None:
                read = torch.cat(read.unbind(0), dim=-1)
            elif not alone:
                read = None
            elif read is not None and read.shape != run[f"{at}ln_final.hook_out"].shape:
                read = at_tokens(subject, at, read)
            yield f"{at}ln_final", stack.ln_final, read
        if stack.ln_embed is not None and f"{at}ln_embed.hook_out" in run.values:
            yield f"{at}ln_embed", stack.ln_embed, None


def _read_by(block: Block, slot: str, part: BlockPart) -> Tensor | None:
    if part.residual == "post_norm":
        return _summed_before(block, slot)
    if part.pair is not None and slot == "ln1":
        return block["hook_resid_pre"][1]
    return block.values.get(block.name(READ_BEFORE.get(slot, "")))


def _summed_before(block: Block, slot: str) -> Tensor | None:
    """The sum that a norm reads: the output of the norm before, plus what was added since."""
    stream = block["hook_resid_pre"]
    for norm, added in SUMMED.items():
        for point in added:
            stream = stream + block[point] if point in block else stream
        if norm == slot:
            return stream
        stream = block.values.get(block.name(f"{norm}.hook_out"), stream)
    return None


def check_norms_compute_their_formula(subject: Subject) -> None:
    """hook_normalized is (x - mean) / divisor; hook_out is that times the gain plus the bias."""
    run = subject.clean
    for at, norm, given in every_norm(subject):
        normalized, out = run[f"{at}.hook_normalized"], run[f"{at}.hook_out"]
        gain, bias = subject.weight(f"{at}.w"), subject.weight(f"{at}.b")
        wanted = normalized if gain is None else normalized * gain
        wanted = _gated(norm, wanted if bias is None else wanted + bias)
        words = "hook_normalized * w + b" + ("" if norm.gate is None else ", times its gate")
        subject.expect.close(f"{at}.hook_out", out, wanted, words)
        _hold_divisor(subject, run, at, norm, given)
        _hold_eps(subject, at, norm, normalized)


def _hold_eps(subject: Subject, at: str, norm: Norm, normalized: Tensor) -> None:
    """The module computes the formula on an input as small as eps."""
    if norm.eps <= 0 or norm.inner is not None or subject.is_half:
        return
    small = normalized * norm.eps**0.5
    try:
        with torch.no_grad():
            made = norm.module.forward(small)
    except TypeError:  # it reads more than its input
        return
    if isinstance(made, Tensor) and made.shape == small.shape:
        wanted = norm.affine(norm.normalize(small))
        subject.expect.close(f"{at}, of a small input,", made, wanted, f"made with eps={norm.eps}")


def _hold_divisor(subject: Subject, run: Pass, at: str, norm: Norm, given: Tensor | None) -> None:
    normalized, scale = run[f"{at}.hook_normalized"], run[f"{at}.hook_scale"]
    size = normalized.double().pow(2).mean(-1, keepdim=True)
    share = 1.0 - norm.eps / scale.double().pow(2)  # without the share of eps
    told = share > 1e-3
    size = (size / share)[told]
    if size.numel():
        subject.expect.holds(
            f"{at}.hook_normalized",
            0.5 < float(size.median()) < 1.01,
            f"its mean square is {float(size.median()):.3g}, and a norm makes it about 1",
        )
    if given is not None:
        centered = given - given.mean(-1, keepdim=True) if norm.kind == "LN" else given
        subject.expect.close(
            f"{at}.hook_normalized * hook_scale",
            normalized * scale,
            centered,
            "its input minus the mean" if norm.kind == "LN" else "its input",
        )


def check_branches_read_the_stream(subject: Subject) -> None:
    """Attention reads the stream at the start of the block, the MLP where its branch begins."""
    if not any(part.adds_up for part in subject.parts.values()):
        raise NotApplicable("what the branches of its layers read is not described")
    for block in subject.clean.blocks.values():
        part = subject.parts[block.at]
        if "hook_attn_in" in block and part.residual is not None:
            subject.expect.close(
                block.name("hook_attn_in"),
                block["hook_attn_in"],
                block["hook_resid_pre"],
                "hook_resid_pre",
            )
        if part.mixer is not None and "mixer.hook_in" in block:
            normed = part.ln1 is not None and part.residual != "post_norm"
            read = "ln1.hook_out" if normed else "hook_resid_pre"
            given, name = block["mixer.hook_in"], block.name("mixer.hook_in")
            if part.residual is None and not normed:
                continue
            if part.mixer.fed_more:
                subject.expect.differ(name, given, block[read], "its other input beside the stream")
            else:
                subject.expect.close(name, given, block[read], read)
        before = _before_mlp(block, part)
        if "hook_mlp_in" in block and part.adds_up:
            subject.expect.close(
                block.name("hook_mlp_in"), block["hook_mlp_in"], block[before], before
            )


def _before_mlp(block: Block, part: BlockPart) -> str:
    if part.residual == "parallel":
        return "hook_resid_pre"
    for point in ("hook_resid_mid_cross", "hook_resid_mid"):
        if point in block:
            return point
    return "hook_resid_pre"


def check_norm_edits_carry_on(subject: Subject) -> None:
    """After an edit of the divisor or the normalized value, the output follows the formula."""
    run = subject.clean
    for block in subject.samples():
        for slot in subject.parts[block.at].norms:
            at = f"{block.at}{slot}"
            if f"{slot}.hook_out" in block:
                _edit_norm(subject, run, at, subject.parts[block.at].norms[slot])


def _gated(norm: Norm, affine: Tensor) -> Tensor:
    """The output of a norm, for that of the norm inside it."""
    if norm.gate is None:
        return affine
    with torch.no_grad():
        return affine * torch.sigmoid(norm.gate(affine))


def _edit_norm(subject: Subject, run: Pass, at: str, norm: Norm) -> None:
    gain, bias = subject.weight(f"{at}.w"), subject.weight(f"{at}.b")
    normalized, out = run[f"{at}.hook_normalized"], f"{at}.hook_out"

    def affine(x: Tensor) -> Tensor:
        x = x if gain is None else x * gain
        return _gated(norm, x if bias is None else x + bias)

    def halve(value: Tensor, hook: Hook) -> Tensor:
        return value * 2.0

    halved = subject.read([out], [(f"{at}.hook_scale", halve)])[out]
    subject.expect.close(out, halved, affine(normalized / 2.0), "half of the normalized value's")
    delta = torch.linspace(-1.0, 1.0, normalized.shape[-1]).to(normalized)

    def shift(value: Tensor, hook: Hook) -> Tensor:
        return value + delta

    shifted = subject.read([out], [(f"{at}.hook_normalized", shift)])[out]
    subject.expect.close(out, shifted, affine(normalized + delta), "the edited value's")
