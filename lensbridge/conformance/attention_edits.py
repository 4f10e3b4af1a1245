"""Edits inside attention: an edit of one head or position changes what it should, and no more."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.conformance.attention import Heads, sampled
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.passes import Pass
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook


def _where(pattern: Tensor, head: slice, query: slice) -> Tensor:
    region = torch.zeros_like(pattern, dtype=torch.bool)
    region[0, head, query] = True
    return region


def hold_only_within(
    subject: Subject, point: str, after: Tensor, before: Tensor, region: Tensor, cause: str
) -> None:
    """Require that a value changed somewhere in a region and nowhere else."""
    outside = torch.where(region, before, after)
    subject.expect.close(f"{point}, outside the reach of {cause},", outside, before, "unchanged")
    subject.expect.differ(f"{point}, reached by {cause},", after[region], before[region], cause)


@dataclass(frozen=True)
class Nudge:
    """An edit of one head at one position of the first row: reversed, so not larger than before."""

    head: int
    position: int

    def __call__(self, value: Tensor, hook: Hook) -> None:
        value[0, self.position, self.head] = -value[0, self.position, self.head].flip(-1)


def check_editing_a_query_moves_its_head(subject: Subject) -> None:
    """An edit of one head of q at one position changes its pattern and z there, and no other."""
    found = [one for one in sampled(subject, "pattern", "z") if one.edited("q") in one]
    for heads in found:
        head, queries = 1, heads.edited("q")
        at = int(heads["pattern"][0, head].amax(-1).argmin())  # where the pattern is least certain
        after = heads.of(_after(subject, heads, queries, Nudge(head, at)))
        cause = f"an edit of {heads.name(queries)}[0, {at}, {head}]"
        region = _where(heads["pattern"], slice(head, head + 1), slice(at, at + 1))
        hold_only_within(
            subject, heads.name("pattern"), after["pattern"], heads["pattern"], region, cause
        )
        reached = _as_z(region.any(-1), heads)
        hold_only_within(subject, heads.name("z"), after["z"], heads["z"], reached, cause)


def _after(subject: Subject, heads: Heads, short: str, edit: object) -> Pass:
    names = [heads.name(one) for one in ("pattern", "z")]
    return subject.read(names, [(heads.name(short), edit)])  # type: ignore[list-item]


def _as_z(reached: Tensor, heads: Heads) -> Tensor:
    """`[b, h, q]` as a region of z."""
    return reached.transpose(1, 2).unsqueeze(-1).expand_as(heads["z"])


def _of_group(heads: Heads, group: int, n_groups: int) -> Tensor:
    """The query heads that read a key/value head, as a mask of `[b, h, q]` of the first row."""
    pattern = heads["pattern"]
    share = pattern.shape[1] // n_groups
    mask = torch.zeros_like(pattern[..., 0], dtype=torch.bool)
    mask[0, group * share : (group + 1) * share] = True
    return mask


def check_editing_a_key_moves_its_heads(subject: Subject) -> None:
    """An edit of one head of k changes the rows of its query heads that attend to the position."""
    found = [one for one in sampled(subject, "pattern", "z") if one.edited("k") in one]
    if not found:
        raise NotApplicable("no layer has keys that can be edited head by head")
    for heads in found:
        keys = heads.edited("k")
        n_groups = heads[keys].shape[2]
        group = n_groups - 1
        ours = _of_group(heads, group, n_groups).unsqueeze(-1)
        open_ = (heads["pattern"] * (1.0 - heads["pattern"])).masked_fill(~ours, 0.0)
        at = int(open_.sum((0, 1, 2)).argmax())
        after = heads.of(_after(subject, heads, keys, Nudge(group, at)))
        seeing = (heads["pattern"][..., at] > 0) & _of_group(heads, group, n_groups)
        region = seeing.unsqueeze(-1).expand_as(heads["pattern"])
        cause = f"an edit of {heads.name(keys)}[0, {at}, {group}]"
        hold_only_within(
            subject, heads.name("pattern"), after["pattern"], heads["pattern"], region, cause
        )


def check_editing_a_value_moves_its_heads(subject: Subject) -> None:
    """An edit of one head of v changes the z of its query heads, and no pattern.

    If the mask is computed from v, it changes patterns too, and then what they mix.
    """
    for heads in sampled(subject, "v", "pattern", "z"):
        group = 0
        ours = _of_group(heads, group, heads["v"].shape[2]).unsqueeze(-1)
        at = int(heads["pattern"].masked_fill(~ours, 0.0).sum((0, 1, 2)).argmax())
        after = heads.of(_after(subject, heads, "v", Nudge(group, at)))
        cause = f"an edit of {heads.name('v')}[0, {at}, {group}]"
        if heads.part.mask_from_v:
            pattern = heads.name("pattern")
            subject.expect.differ(pattern, after["pattern"], heads["pattern"], cause)
            continue
        subject.expect.close(
            f"{heads.name('pattern')} under {cause}",
            after["pattern"],
            heads["pattern"],
            "unchanged",
        )
        seeing = (heads["pattern"][..., at] > 0) & _of_group(heads, group, heads["v"].shape[2])
        hold_only_within(
            subject, heads.name("z"), after["z"], heads["z"], _as_z(seeing, heads), cause
        )


def check_editing_scores_and_patterns_moves_z(subject: Subject) -> None:
    """A head that is made to attend to one position has the value there as its z."""
    for heads in sampled(subject, "attn_scores", "pattern", "v", "z"):
        head, at = heads["pattern"].shape[1] - 1, heads["pattern"].shape[2] // 2
        target = int(heads["pattern"][0, head, at].argmin())
        wanted = heads.values[0, target, head]

        def look(value: Tensor, hook: Hook, one: tuple[int, int, int] = (head, at, target)) -> None:
            scores = hook.name.endswith("scores")
            value[0, one[0], one[1]] = -1e4 if scores else 0.0
            value[0, one[0], one[1], one[2]] = 1e4 if scores else 1.0

        out = heads.block.name({"attn": "hook_attn_out"}.get(heads.sub, "hook_cross_attn_out"))
        names = [name for name in (heads.name("z"), out) if name in subject.names]
        for short in ("attn_scores", "pattern"):
            run = subject.read(names, [(heads.name(short), look)])
            z = run[heads.name("z")]
            if out in run.values:
                cause = f"an edit of {heads.name(short)}"
                subject.expect.differ(out, run[out], subject.clean[out], cause)
            subject.expect.close(
                f"{heads.name('z')}[0, {at}, {head}], after an edit of {heads.name(short)} that "
                f"leaves only position {target},",
                z[0, at, head],
                wanted,
                "the value there",
            )


def check_each_head_reads_its_own_copy(subject: Subject) -> None:
    """An edit of one head's copy of the stream changes that head and no other."""
    for block in subject.samples("hook_q_input"):
        part = subject.parts[block.at].attn
        for role in "qkv":
            if part is not None and part.q_norm is not None and part.qk_norm_axes == "flat":
                raise NotApplicable("a norm over all heads makes each head depend on the others")
            copies, point = f"hook_{role}_input", f"attn.hook_{role}"
            if copies in block and point in block:
                head = block[point].shape[2] - 1
                name = block.name(point)
                after = subject.read([name], [(block.name(copies), Nudge(head, 1))])[name]
                region = torch.zeros_like(after, dtype=torch.bool)
                region[0, 1, head] = True
                hold_only_within(
                    subject,
                    name,
                    after,
                    block[point],
                    region,
                    f"an edit of one head of {block.name(copies)}",
                )
