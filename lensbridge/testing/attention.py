"""Attention: scores from q and k, pattern from scores, z from pattern and v, head by head."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lensbridge.hooks import Hook
from lensbridge.layouts import repeat_kv
from lensbridge.parts import AttentionPart
from lensbridge.testing.expect import NotApplicable, best_factor
from lensbridge.testing.subject import Block, Pass, Subject


@dataclass(frozen=True)
class Heads:
    """One attention module's values in one pass, by short name."""

    block: Block
    sub: str
    part: AttentionPart

    def name(self, short: str) -> str:
        """The full name."""
        return self.block.name(f"{self.sub}.hook_{short}")

    def __contains__(self, short: str) -> bool:
        return f"{self.sub}.hook_{short}" in self.block

    def __getitem__(self, short: str) -> Tensor:
        return self.block[f"{self.sub}.hook_{short}"]

    def of(self, run: Pass) -> "Heads":
        """The same module in another pass."""
        return Heads(Block(self.block.at, run.values), self.sub, self.part)

    @property
    def values(self) -> Tensor:
        """v, once for each query head."""
        return repeat_kv(self["v"], self["pattern"].shape[1], axis=2)

    @property
    def seen(self) -> Tensor:
        """Where attention is not masked: some models mask with a large number, not with -inf."""
        scores = self["attn_scores"]
        return torch.isfinite(scores) & ((scores > -1e3) | (self["pattern"] > 0))

    @property
    def product_names(self) -> tuple[str, str]:
        """What the scores are the products of."""
        return ("rot_q", "rot_k") if "rot_q" in self else ("q", "k")


def every(subject: Subject, *needs: str, run: Pass | None = None) -> list[Heads]:
    """Every attention module that has these points."""
    found = []
    for block in (run or subject.clean).blocks.values():
        part = subject.parts[block.at]
        for sub, one in (("attn", part.attn), ("cross_attn", part.cross)):
            if one is not None and all(f"{sub}.hook_{n}" in block for n in needs):
                found.append(Heads(block, sub, one))
    return found


def sampled(subject: Subject, *needs: str) -> Iterator[Heads]:
    """One module of each kind."""
    chosen = {block.at for block in subject.samples()}
    return (heads for heads in every(subject, *needs) if heads.block.at in chosen)


def check_pattern_is_softmax_of_scores(subject: Subject) -> None:
    """Rows of the pattern are the softmax of the scores; with a sink, less than all of it."""
    for heads in every(subject, "attn_scores", "pattern"):
        pattern, total = heads["pattern"], heads["pattern"].sum(-1, keepdim=True)
        if heads.part.sinks is None:
            ones = torch.ones_like(total)
            subject.expect.close(f"the sum of a row of {heads.name('pattern')}", total, ones, "1")
        else:
            less = bool((total < 1.0).all() and (total > 0.0).all())
            subject.expect.holds(heads.name("pattern"), less, "with a sink its rows sum to under 1")
        wanted = heads["attn_scores"].softmax(-1)
        subject.expect.close(heads.name("pattern"), pattern / total, wanted, "softmax(attn_scores)")


def check_pattern_is_causal(subject: Subject) -> None:
    """Where later tokens leave earlier outputs alone, no pattern looks ahead."""
    if not subject.is_causal:
        raise NotApplicable("the model is not causal")
    main = subject.model.native.stacks[0].prefix
    for heads in every(subject, "pattern"):
        if heads.sub == "attn" and heads.block.at.startswith(f"{main}."):
            ahead = heads["pattern"].triu(1)
            subject.expect.close(
                f"{heads.name('pattern')} above the diagonal",
                ahead,
                torch.zeros_like(ahead),
                "zero",
            )


def check_z_is_pattern_times_v(subject: Subject) -> None:
    """z is the values as the pattern weighs them."""
    for heads in every(subject, "pattern", "v", "z"):
        wanted = torch.einsum("bhqk,bkhd->bqhd", heads["pattern"], heads.values)
        subject.expect.close(heads.name("z"), heads["z"], wanted, "pattern @ v")


def check_one_token_z_is_v(subject: Subject) -> None:
    """A position that sees only itself gives its own value."""
    if subject.merges_pictures:
        raise NotApplicable("pictures take more than one position")
    found = every(subject, "v", "z", run=subject.one_token)
    found = [one for one in found if one.sub == "attn" and one.part.sinks is None]
    found = [one for one in found if one["z"].shape[1] == 1]
    if not found:
        raise NotApplicable("a sink takes part of the attention, or there is never one position")
    for heads in found:
        wanted = repeat_kv(heads["v"], heads["z"].shape[2], axis=2)
        subject.expect.close(heads.name("z"), heads["z"], wanted, "v, on one token")


def check_scores_are_products(subject: Subject) -> None:
    """Scores grow with the products of queries and keys, head by head, and with nothing less."""
    for heads in every(subject, "attn_scores", "pattern", "q"):
        q_name, k_name = heads.product_names
        if q_name in heads and k_name in heads:
            subject.expect.made += 1
            if not (_are_linear(subject, heads) or _rise_along_rows(heads)):
                _hold_mixed_difference(subject, heads)


def _products(heads: Heads) -> Tensor:
    q_name, k_name = heads.product_names
    keys = repeat_kv(heads[k_name], heads[q_name].shape[2], axis=2)
    return torch.einsum("bqhd,bkhd->bhqk", heads[q_name].double(), keys.double())


def _are_linear(subject: Subject, heads: Heads) -> bool:
    """One positive factor makes the scores of the products, where they are not masked."""
    scores, products = heads["attn_scores"].double(), _products(heads)
    seen = heads.seen
    if "rel_pos_bias" in heads:
        scores = scores - heads["rel_pos_bias"].double()
    factor = best_factor(scores[seen], products[seen])
    return factor > 0 and subject.expect.are_close(scores[seen], products[seen] * factor)


def _rise_along_rows(heads: Heads) -> bool:
    """In each row scores rise with the products: a soft-cap bends them and keeps their order."""
    scores, products = heads["attn_scores"].double(), _products(heads)
    masked = products.masked_fill(~heads.seen, -torch.inf)
    order = masked.argsort(-1)
    steps = scores.masked_fill(~heads.seen, -1e9).gather(-1, order).diff(dim=-1)
    return bool((steps >= -1e-5).all())


def _hold_mixed_difference(subject: Subject, heads: Heads) -> None:
    """What is left of the scores when everything that depends on q or k alone is taken off."""
    q_name, k_name = heads.product_names
    q, k = heads[q_name], heads[k_name]
    generator = torch.Generator().manual_seed(3)
    # towards zero, for some models clip what is large
    dq = -q * torch.rand(q.shape, generator=generator).to(q)
    dk = -k * torch.rand(k.shape, generator=generator).to(k)

    def add(delta: Tensor) -> object:
        return lambda value, hook: value + delta

    def scores(*edits: tuple[str, Tensor]) -> Tensor:
        hooks = [(heads.name(short), add(delta)) for short, delta in edits]
        name = heads.name("attn_scores")
        return subject.read([name], hooks)[name].double()  # type: ignore[arg-type]

    both = scores((q_name, dq), (k_name, dk))
    mixed = both - scores((q_name, dq)) - scores((k_name, dk)) + heads["attn_scores"].double()
    keys = repeat_kv(dk, dq.shape[2], axis=2)
    wanted = torch.einsum("bqhd,bkhd->bhqk", dq.double(), keys.double())
    seen = heads.seen & torch.isfinite(mixed)
    subject.expect.proportional(
        f"{heads.name('attn_scores')}, as far as it depends on both {q_name} and {k_name},",
        mixed[seen],
        wanted[seen],
        f"the product of {q_name} and {k_name}",
    )


def check_rotary_rotates(subject: Subject) -> None:
    """In every stack, somewhere behind the first position, rotary turns the queries."""
    turned: dict[str, bool] = {}
    for heads in every(subject, "rot_q", "q"):
        rotated, plain = heads["rot_q"], heads["q"]
        straight = plain.double() * best_factor(rotated, plain)  # some models scale queries here
        stack = f"{heads.block.at.rstrip('.').rpartition('.')[0]}.{heads.sub}"
        moved = not subject.expect.are_close(rotated, straight)
        turned[stack] = turned.get(stack, False) or moved
    for stack, moved in turned.items():
        words = "it is hook_q in every layer, up to a factor: no rotary there"
        subject.expect.holds(f"{stack}.hook_rot_q", moved, words)


def check_rotary_keeps_lengths(subject: Subject) -> None:
    """Rotary changes the lengths of queries and of keys alike, mostly not at all.

    A multiplier on one of them that was not declared would show.
    """
    found = [one for one in every(subject, "q", "rot_q", "k", "rot_k") if one.part.latent is None]
    found = [one for one in found if not _normed_last(subject, one, "rot_k")]
    ratios = [(one, _lengthened(one, "q"), _lengthened(one, "k")) for one in found]
    ratios = [(one, q, k) for one, q, k in ratios if float(q.std()) < 1e-3 * float(q.mean())]
    if not ratios:
        raise NotApplicable("rotary changes lengths, or a norm stands behind it")
    for heads, queries, keys in ratios:
        wanted = queries.mean().expand_as(keys)
        subject.expect.close(f"the length of {heads.name('rot_k')}", keys, wanted, "as with q")


def _lengthened(heads: Heads, letter: str) -> Tensor:
    return heads[f"rot_{letter}"].double().norm(dim=-1) / heads[letter].double().norm(dim=-1)


def check_rotary_is_linear(subject: Subject) -> None:
    """Between hook_q and hook_rot_q, and the same for k, nothing but rotary happens.

    A norm that was not declared would show: it takes a factor away. Where the norm stands behind
    rotary, its output is what the kernel is given.
    """
    pairs = [
        (heads, *pair)
        for heads in sampled(subject, "q", "rot_q")
        for pair in (("q", "rot_q"), ("k", "rot_k"))
        if all(one in heads for one in pair)
        and (heads.part.latent is None or pair[0] == "q")  # a latent's heads share a part of k
        and not _normed_last(subject, heads, pair[1])
    ]
    if not pairs:
        raise NotApplicable("a norm stands behind rotary")
    for heads, plain, rotated in pairs:
        name = heads.name(rotated)
        edit = [(heads.name(plain), _halve)]
        halved = subject.read([name], edit)[name]
        subject.expect.close(
            f"{name}, when {heads.name(plain)} is halved,",
            halved,
            0.5 * heads[rotated],
            "halved too",
        )


def _halve(value: Tensor, hook: Hook) -> Tensor:
    return value * 0.5  # half: some models clip what is larger


def _normed_last(subject: Subject, heads: Heads, rotated: str) -> bool:
    """Whether some module inside attention returns what the kernel is given."""
    wanted = heads[rotated]
    forms = (wanted, wanted.transpose(1, 2), wanted.flatten(-2))
    found: list[bool] = []

    def compare(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            same = [f for f in forms if f.shape == output.shape]
            found.append(any(subject.expect.are_close(output, f) for f in same))

    inner = [m for m in heads.part.module.modules() if m is not heads.part.module]
    handles = [module.register_forward_hook(compare) for module in inner]
    try:
        subject.bare()
    finally:
        for handle in handles:
            handle.remove()
    moved = not subject.expect.are_close(wanted, heads[rotated.removeprefix("rot_")])
    return moved and any(found)


def check_shared_keys_are_an_earlier_layers(subject: Subject) -> None:
    """A layer without keys or values of its own reads those of an earlier one."""
    earlier: list[Heads] = []
    for heads in every(subject, "q", "pattern", "z"):
        for role in "kv":
            if role not in heads:
                subject.expect.holds(
                    heads.name(role),
                    any(_reads(subject, heads, one, role) for one in earlier),
                    "the layer is said to have none, and it reads those of no earlier layer",
                )
        if heads.sub == "attn":
            earlier.append(heads)
    if not earlier:
        raise NotApplicable("no layer has attention of its own")
    subject.expect.made += 1


def _reads(subject: Subject, heads: Heads, other: Heads, role: str) -> bool:
    if role == "k":
        both = "rot_k" in heads and "rot_k" in other
        return both and subject.expect.are_close(heads["rot_k"], other["rot_k"])
    if "v" not in other:
        return False
    wanted = torch.einsum("bhqk,bkhd->bqhd", heads["pattern"], other.values)
    return wanted.shape == heads["z"].shape and subject.expect.are_close(heads["z"], wanted)


def check_scores_have_the_bias(subject: Subject) -> None:
    """Where a layer holds relative positions, scores are products plus their bias."""
    for heads in every(subject, "attn_scores", "pattern", "q", "rel_pos_bias"):
        subject.expect.holds(
            heads.name("attn_scores"),
            _are_linear(subject, heads),
            "it is not the product of q and k plus hook_rel_pos_bias",
        )


def check_result_sums_to_attn_out(subject: Subject) -> None:
    """What the heads write, with the bias carried the same way, is what attention adds."""
    outs = {"attn": "hook_attn_out", "cross_attn": "hook_cross_attn_out"}
    for heads in every(subject, "result"):
        out = outs[heads.sub]
        if out in heads.block:
            rest = heads.block[out] - heads["result"].sum(2)
            subject.expect.close(
                f"{heads.block.name(out)} less the sum of {heads.name('result')}",
                rest,
                _carried_bias(subject, heads, rest),
                "b_O, carried to the stream as heads are",
            )


def _carried_bias(subject: Subject, heads: Heads, rest: Tensor) -> Tensor:
    """b_O as it reaches the stream, through the norm and multiplier behind attention."""
    bias = subject.weight(f"{heads.block.at}{heads.sub}.b_O")
    bias = torch.zeros_like(rest[0, 0]) if bias is None else bias
    slot = {"attn": "ln1_post", "cross_attn": "ln_cross_post"}[heads.sub]
    if f"{slot}.hook_scale" in heads.block:
        from lensbridge.testing.norms import norms_of

        norm = norms_of(subject.parts[heads.block.at])[slot]
        bias = bias - bias.mean() if norm.kind == "LN" else bias
        gain = subject.weight(f"{heads.block.at}{slot}.w")
        shift = subject.weight(f"{heads.block.at}{slot}.b")
        bias = bias / heads.block[f"{slot}.hook_scale"]
        bias = bias if gain is None else bias * gain
        bias = bias if shift is None else bias + shift
    return bias.expand_as(rest) * heads.part.writer.scale.value(rest)


# --- edits -----------------------------------------------------------------------------------


def _where(pattern: Tensor, head: slice, query: slice) -> Tensor:
    region = torch.zeros_like(pattern, dtype=torch.bool)
    region[0, head, query] = True
    return region


def hold_only_within(
    subject: Subject, point: str, after: Tensor, before: Tensor, region: Tensor, cause: str
) -> None:
    """A value changed in a region, somewhere, and nowhere else."""
    outside = torch.where(region, before, after)
    subject.expect.close(f"{point}, where {cause} does not reach,", outside, before, "unchanged")
    subject.expect.differ(f"{point}, where {cause} reaches,", after[region], before[region], cause)


@dataclass(frozen=True)
class Nudge:
    """An edit of one head at one position of the first row: reversed, so no larger than it was."""

    head: int
    position: int

    def __call__(self, value: Tensor, hook: Hook) -> None:
        value[0, self.position, self.head] = -value[0, self.position, self.head].flip(-1)


def check_editing_a_query_moves_its_head(subject: Subject) -> None:
    """One head of q at one position moves that head's pattern and z there, and nothing earlier."""
    for heads in sampled(subject, "q", "pattern", "z"):
        head = 1
        at = int(heads["pattern"][0, head].amax(-1).argmin())  # where it is least settled
        after = heads.of(_after(subject, heads, "q", Nudge(head, at)))
        cause = f"an edit of {heads.name('q')}[0, {at}, {head}]"
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
    """Which query heads read a key/value head, as a mask of `[b, h, q]` of the first row."""
    pattern = heads["pattern"]
    share = pattern.shape[1] // n_groups
    mask = torch.zeros_like(pattern[..., 0], dtype=torch.bool)
    mask[0, group * share : (group + 1) * share] = True
    return mask


def check_editing_a_key_moves_its_heads(subject: Subject) -> None:
    """One head of k at one position moves the rows of its query heads that see the position."""
    found = list(sampled(subject, "q", "k", "pattern", "z"))
    found = [one for one in found if one.part.latent is None or "rot_k" in one]
    if not found:
        raise NotApplicable("a latent's heads share a part of k, and nothing rotates it")
    for heads in found:
        group = heads["k"].shape[2] - 1
        ours = _of_group(heads, group, heads["k"].shape[2]).unsqueeze(-1)
        open_ = (heads["pattern"] * (1.0 - heads["pattern"])).masked_fill(~ours, 0.0)
        at = int(open_.sum((0, 1, 2)).argmax())
        keys = "k" if heads.part.latent is None else "rot_k"  # a latent's heads share a part
        after = heads.of(_after(subject, heads, keys, Nudge(group, at)))
        seeing = (heads["pattern"][..., at] > 0) & _of_group(heads, group, heads["k"].shape[2])
        region = seeing.unsqueeze(-1).expand_as(heads["pattern"])
        cause = f"an edit of {heads.name('k')}[0, {at}, {group}]"
        hold_only_within(
            subject, heads.name("pattern"), after["pattern"], heads["pattern"], region, cause
        )


def check_editing_a_value_moves_its_heads(subject: Subject) -> None:
    """One head of v at one position moves the z of its query heads, and no pattern."""
    for heads in sampled(subject, "v", "pattern", "z"):
        group = 0
        ours = _of_group(heads, group, heads["v"].shape[2]).unsqueeze(-1)
        at = int(heads["pattern"].masked_fill(~ours, 0.0).sum((0, 1, 2)).argmax())
        after = heads.of(_after(subject, heads, "v", Nudge(group, at)))
        cause = f"an edit of {heads.name('v')}[0, {at}, {group}]"
        subject.expect.close(
            f"{heads.name('pattern')} under {cause}",
            after["pattern"],
            heads["pattern"],
            "as it was",
        )
        seeing = (heads["pattern"][..., at] > 0) & _of_group(heads, group, heads["v"].shape[2])
        hold_only_within(
            subject, heads.name("z"), after["z"], heads["z"], _as_z(seeing, heads), cause
        )


def check_editing_scores_and_patterns_moves_z(subject: Subject) -> None:
    """A head that is made to look at one place gives the value that stands there."""
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
                f"{heads.name('z')}[0, {at}, {head}], after {heads.name(short)} was made to look "
                f"at position {target} alone,",
                z[0, at, head],
                wanted,
                "the value there",
            )


def check_each_head_reads_its_own_copy(subject: Subject) -> None:
    """An edit of one head's copy of the stream moves that head and no other."""
    for block in subject.samples("hook_q_input"):
        part = subject.parts[block.at].attn
        for role in "qkv":
            if part is not None and part.q_norm is not None and part.qk_norm_axes == "flat":
                raise NotApplicable("a norm over all heads makes each depend on all")
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
