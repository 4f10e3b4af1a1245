"""Attention: scores from q and k, pattern from scores, z from pattern and v, head by head."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable, best_factor
from lensbridge.conformance.passes import Block, Pass
from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import AttentionPart, NormSlot
from lensbridge.tensors.layouts import repeat_kv


@dataclass(frozen=True)
class Heads:
    """The values of one attention module in one pass, by short name."""

    block: Block
    sub: str
    part: AttentionPart

    @property
    def post_norm(self) -> NormSlot:
        """The slot of the norm after this attention."""
        return "ln1_post" if self.sub == "attn" else "ln_cross_post"

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
        """Where attention is not masked; some models mask with a large number instead of -inf."""
        scores = self["attn_scores"]
        return torch.isfinite(scores) & ((scores > -1e3) | (self["pattern"] > 0))

    def edited(self, letter: str) -> str:
        """Where queries or keys are edited: before rotary, or where the kernel gets them."""
        shared = letter == "k" and self.part.latent is not None  # heads share a part of k
        return letter if letter in self and not shared else f"rot_{letter}"

    @property
    def product_names(self) -> tuple[str, str]:
        """The points whose products are the scores."""
        return ("rot_q", "rot_k") if "rot_q" in self else ("q", "k")


def every(subject: Subject, *needs: str, run: Pass | None = None) -> list[Heads]:
    """Every attention module that has these points."""
    found = []
    for block in (run or subject.clean).blocks.values():
        part = subject.parts[block.at]
        for sub, one in (("attn", part.attention), ("cross_attn", part.cross)):
            if one is not None and all(f"{sub}.hook_{n}" in block for n in needs):
                found.append(Heads(block, sub, one))
    return found


def sampled(subject: Subject, *needs: str) -> Iterator[Heads]:
    """One module of each kind."""
    chosen = {block.at for block in subject.samples()}
    return (heads for heads in every(subject, *needs) if heads.block.at in chosen)


def check_pattern_is_softmax_of_scores(subject: Subject) -> None:
    """Rows of the pattern are the softmax of the scores; with a sink, a part of it."""
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
    """If later tokens do not change earlier outputs, patterns are zero above the diagonal."""
    if not subject.is_causal:
        raise NotApplicable("the model is not causal")
    main = f"{subject.model.native.stacks[0].prefix}."
    found = [one for one in every(subject, "pattern") if one.sub == "attn"]
    found = [one for one in found if one.block.at.startswith(main)]
    if not found:
        raise NotApplicable("the attention of the main stack has no pattern")
    for heads in found:
        ahead = heads["pattern"].triu(1)
        name = f"{heads.name('pattern')} above the diagonal"
        subject.expect.close(name, ahead, torch.zeros_like(ahead), "zero")


def check_z_is_pattern_times_v(subject: Subject) -> None:
    """z is the sum of the values, weighted by the pattern."""
    for heads in every(subject, "pattern", "v", "z"):
        wanted = torch.einsum("bhqk,bkhd->bqhd", heads["pattern"], heads.values)
        subject.expect.close(heads.name("z"), heads["z"], wanted, "pattern @ v")


def check_one_token_z_is_v(subject: Subject) -> None:
    """If a position attends only to itself, z is its own value."""
    if subject.merges_pictures:
        raise NotApplicable("images take more than one position")
    found = every(subject, "v", "z", run=subject.one_token)
    found = [one for one in found if one.sub == "attn" and one.part.sinks is None]
    found = [one for one in found if one["z"].shape[1] == 1]
    if not found:
        raise NotApplicable("attention has a sink, or always several positions")
    for heads in found:
        wanted = repeat_kv(heads["v"], heads["z"].shape[2], axis=2)
        subject.expect.close(heads.name("z"), heads["z"], wanted, "v, on one token")


def check_scores_are_products(subject: Subject) -> None:
    """The scores of each head are the products of its queries and keys, or increase with them."""
    for heads in every(subject, "attn_scores", "pattern"):
        q_name, k_name = heads.product_names
        if heads.part.q is None:
            _hold_distinct(subject, heads)
        if q_name in heads and k_name in heads:
            subject.expect.made += 1
            if not (_are_linear(subject, heads) or _rise_along_rows(heads)):
                _hold_mixed_difference(subject, heads)


def _hold_distinct(subject: Subject, heads: Heads) -> None:
    """Keys that are read at the kernel may have been repeated for the queries already."""
    keys = heads["rot_k"]
    same = any(subject.expect.are_close(*pair) for pair in pairwise(keys.unbind(2)))
    shown = "two heads are the same, so there are fewer than dims.kv_heads says"
    subject.expect.holds(heads.name("rot_k"), not same, shown)
    wanted = heads.part.n_kv
    shown = f"it has {keys.shape[2]} heads, and the description says {wanted} (dims.kv_heads)"
    subject.expect.holds(heads.name("rot_k"), keys.shape[2] == wanted, shown)


def _products(heads: Heads) -> Tensor:
    q_name, k_name = heads.product_names
    keys = repeat_kv(heads[k_name], heads[q_name].shape[2], axis=2)
    return torch.einsum("bqhd,bkhd->bhqk", heads[q_name].double(), keys.double())


def _are_linear(subject: Subject, heads: Heads) -> bool:
    """Whether scores are the products times one positive factor, where they are not masked."""
    scores, products = heads["attn_scores"].double(), _products(heads)
    seen = heads.seen
    if "rel_pos_bias" in heads:
        scores = scores - heads["rel_pos_bias"].double()
    factor = best_factor(scores[seen], products[seen])
    return factor > 0 and subject.expect.are_close(scores[seen], products[seen] * factor)


def _rise_along_rows(heads: Heads) -> bool:
    """Whether the scores of each row increase with the products, as under a soft-cap."""
    scores, products = heads["attn_scores"].double(), _products(heads)
    masked = products.masked_fill(~heads.seen, -torch.inf)
    order = masked.argsort(-1)
    steps = scores.masked_fill(~heads.seen, -1e9).gather(-1, order).diff(dim=-1)
    return bool((steps >= -1e-5).all())


def _hold_mixed_difference(subject: Subject, heads: Heads) -> None:
    """Compare the part of the scores that depends on both q and k with their product."""
    q_name, k_name = heads.product_names
    q, k = heads[q_name], heads[k_name]
    generator = torch.Generator().manual_seed(3)
    # towards zero, because some models clip large values
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
        f"the part of {heads.name('attn_scores')} that depends on both {q_name} and {k_name}",
        mixed[seen],
        wanted[seen],
        f"the product of {q_name} and {k_name}",
    )


def check_shared_keys_are_an_earlier_layers(subject: Subject) -> None:
    """A layer without its own keys or values uses those of an earlier layer."""
    earlier: list[Heads] = []
    for heads in every(subject, "q", "pattern", "z"):
        for role in "kv":
            if role not in heads:
                subject.expect.holds(
                    heads.name(role),
                    any(_reads(subject, heads, one, role) for one in earlier),
                    "the description says that the layer has none, and it uses no earlier layer's",
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
    """In a layer with relative positions, scores are products plus their bias."""
    for heads in every(subject, "attn_scores", "pattern", "q", "rel_pos_bias"):
        subject.expect.holds(
            heads.name("attn_scores"),
            _are_linear(subject, heads),
            "it is not the product of q and k plus hook_rel_pos_bias",
        )


def check_result_sums_to_attn_out(subject: Subject) -> None:
    """What attention adds is the sum of what the heads write, plus the bias."""
    outs = {"attn": "hook_attn_out", "cross_attn": "hook_cross_attn_out"}
    for heads in every(subject, "result"):
        out = outs[heads.sub]
        if out in heads.block:
            rest = heads.block[out] - heads["result"].sum(2)
            subject.expect.close(
                f"{heads.block.name(out)} minus the sum of {heads.name('result')}",
                rest,
                _carried_bias(subject, heads, rest),
                "b_O, through the same norm and multiplier as the heads",
            )


def _carried_bias(subject: Subject, heads: Heads, rest: Tensor) -> Tensor:
    """b_O as it is added to the stream, through the norm and multiplier after attention."""
    bias = subject.weight(f"{heads.block.at}{heads.sub}.b_O")
    bias = torch.zeros_like(rest[0, 0]) if bias is None else bias
    slot = heads.post_norm
    if f"{slot}.hook_scale" in heads.block:
        norm = subject.parts[heads.block.at].norms[slot]
        bias = bias - bias.mean() if norm.kind == "LN" else bias
        gain = subject.weight(f"{heads.block.at}{slot}.w")
        shift = subject.weight(f"{heads.block.at}{slot}.b")
        bias = bias / heads.block[f"{slot}.hook_scale"]
        bias = bias if gain is None else bias * gain
        bias = bias if shift is None else bias + shift
    return bias.expand_as(rest) * heads.part.writer.scale.value(rest)
