"""Rotary: between the projections and the kernel, nothing else happens to queries and keys."""

from torch import Tensor

from lensbridge.conformance.attention import Heads, every, sampled
from lensbridge.conformance.expect import NotApplicable, best_factor
from lensbridge.conformance.native_calls import NativeCall, watch_calls
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
    every_one = every(subject, "q", "rot_q", "k", "rot_k")
    latents = [one for one in every_one if one.part.latent is not None]
    for one in latents:
        _hold_unrotated(subject, one)
    found = [one for one in every_one if one.part.latent is None]
    found = [one for one in found if not _makers(subject, one, "rot_k")]
    ratios = [(one, _lengthened(one, "q"), _lengthened(one, "k")) for one in found]
    ratios = [(one, q, k) for one, q, k in ratios if float(q.std()) < 1e-3 * float(q.mean())]
    if not ratios and not latents:
        raise NotApplicable("rotary changes lengths, or a norm follows it")
    for heads, queries, keys in ratios:
        wanted = queries.mean().expand_as(keys)
        unscaled = wanted * heads.part.d_head**0.5  # ESM scales queries instead of scores
        wanted = unscaled if subject.expect.are_close(keys, unscaled) else wanted
        subject.expect.close(f"the length of {heads.name('rot_k')}", keys, wanted, "as with q")


def _hold_unrotated(subject: Subject, heads: Heads) -> None:
    """The first part of each head of a latent is not rotated, so nothing happens to it."""
    assert heads.part.latent is not None
    width = heads.part.latent.d_nope
    for letter in "qk":
        rotated, plain = heads[f"rot_{letter}"], heads[letter]
        name = f"{heads.name(f'rot_{letter}')}[..., :{width}]"
        subject.expect.close(name, rotated[..., :width], plain[..., :width], f"as hook_{letter}")


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
    """Whether a norm follows rotary: a module reads something else than q and gives rot_q."""
    return "rotated" in _makers(subject, heads, rotated)


def _makers(subject: Subject, heads: Heads, rotated: str) -> set[str]:
    """Whether modules inside attention return what the kernel reads, and what they read.

    "plain": they read q (or k) as it was projected. "rotated": they read something else.
    """
    wanted, plain = heads[rotated], heads[rotated.removeprefix("rot_")]
    found: set[str] = set()

    def compare(call: NativeCall) -> None:
        if _is_one_of(subject, call.output, wanted):
            reads_plain = any(_is_one_of(subject, given, plain) for given in call.given)
            found.add("plain" if reads_plain else "rotated")

    inner = [m for m in heads.part.module.modules() if m is not heads.part.module]
    watch_calls(subject, inner, compare)
    return set() if subject.expect.are_close(wanted, plain) else found


def _is_one_of(subject: Subject, value: object, heads: Tensor) -> bool:
    """Whether a value is this one of heads, in one of the forms in which modules take them."""
    forms = (heads, heads.transpose(1, 2), heads.flatten(-2))
    return isinstance(value, Tensor) and any(
        form.shape == value.shape and subject.expect.are_close(value, form) for form in forms
    )
