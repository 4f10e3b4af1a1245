"""Rotary: between the projections and the kernel, nothing else happens to queries and keys."""

from torch import Tensor, nn

from lensbridge.conformance.attention import Heads, every, sampled
from lensbridge.conformance.expect import NotApplicable, best_factor
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook


def check_rotary_rotates(subject: Subject) -> None:
    """In every stack that has rotary, it changes the queries of some layer."""
    turned: dict[str, bool] = {}
    for heads in every(subject, "rot_q", "q"):
        rotated, plain = heads["rot_q"], heads["q"]
        straight = plain.double() * best_factor(rotated, plain)  # some models scale queries here
        stack = f"{heads.block.at.rstrip('.').rpartition('.')[0]}.{heads.sub}"
        moved = not subject.expect.are_close(rotated, straight)
        turned[stack] = turned.get(stack, False) or moved
    for stack, moved in turned.items():
        words = "it equals hook_q in every layer, up to a factor, so there is no rotary"
        subject.expect.holds(f"{stack}.hook_rot_q", moved, words)


def check_rotary_keeps_lengths(subject: Subject) -> None:
    """Rotary changes the lengths of queries and keys by the same factor, usually 1.

    This finds a multiplier on one of them that is not described.
    """
    found = [one for one in every(subject, "q", "rot_q", "k", "rot_k") if one.part.latent is None]
    found = [one for one in found if not _normed_last(subject, one, "rot_k")]
    ratios = [(one, _lengthened(one, "q"), _lengthened(one, "k")) for one in found]
    ratios = [(one, q, k) for one, q, k in ratios if float(q.std()) < 1e-3 * float(q.mean())]
    if not ratios:
        raise NotApplicable("rotary changes lengths, or a norm follows it")
    for heads, queries, keys in ratios:
        wanted = queries.mean().expand_as(keys)
        subject.expect.close(f"the length of {heads.name('rot_k')}", keys, wanted, "as with q")


def _lengthened(heads: Heads, letter: str) -> Tensor:
    return heads[f"rot_{letter}"].double().norm(dim=-1) / heads[letter].double().norm(dim=-1)


def check_rotary_is_linear(subject: Subject) -> None:
    """Between hook_q and hook_rot_q there is only rotary, and the same for k.

    This finds a norm that is not described, because a norm removes a factor. If the norm follows
    rotary, the kernel reads its output.
    """
    pairs = [
        (heads, *pair)
        for heads in sampled(subject, "q", "rot_q")
        for pair in (("q", "rot_q"), ("k", "rot_k"))
        if all(one in heads for one in pair)
        and (heads.part.latent is None or pair[0] == "q")  # the heads of a latent share a part of k
        and not _normed_last(subject, heads, pair[1])
    ]
    if not pairs:
        raise NotApplicable("a norm follows rotary")
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
    return value * 0.5  # half, because some models clip larger values


def _normed_last(subject: Subject, heads: Heads, rotated: str) -> bool:
    """Whether a module inside attention returns what the kernel reads."""
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
