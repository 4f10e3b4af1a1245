"""The reasons why a description leaves parts out, in sentences."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from lensbridge.derive.reductions import blocks_of
from lensbridge.spec import Architecture, MoE, Opaque

_LONGEST = 300

_NAMED = {
    "residual": ("inside of the layers", "residual", "layers"),
    "attn": ("attention", "attn"),
    "mixer": ("mixer", "attention", "attn"),
    "mlp": ("MLP", "mlp"),
    "experts": ("experts",),
    "unembed": ("unembed", "head"),
}
"""Names under which a derivation keeps the reason why a part is not described."""

_UNSEEN = "no softmax of products of queries and keys was seen in its layers"
_USUAL = {
    "attn": _UNSEEN,
    "mixer": _UNSEEN,
    "experts": "its experts are stacked in parameters, and their module is not called with the "
    "indices of the chosen ones",
}
"""What is so where a part was never looked for."""

_FAILED = {
    "the head makes logits": "its logits are not what its head makes of the last layer's output",
    "logits are the output": "the logits that it returns are not what its head gives",
    "the stream adds up": "what its branches give does not add up to the stream",
    "branches read the stream": "its branches read something else than the stream or its norm",
    "shapes are as declared": "what its branches read or give has not the shape of the stream",
    "reading changes nothing": "the model writes into values after it computed them",
    "projections make q, k and v": "its queries, keys and values are not what the projections that "
    "were found make of the stream",
    "z is pattern times v": "what its heads give is not the pattern times the values",
    "the activation is as named": "its neurons are another function of what the projections give "
    "than the activation in the config",
    "experts sum to mlp_out": "the outputs of its experts, times their weights, do not sum to what "
    "it gives",
}
"""What it means for a model that it fails a check."""


def explain(architecture: Architecture, missing: Mapping[str, str]) -> Architecture:
    """The description with the reasons why parts of it are not described.

    Args:
        architecture: the description.
        missing: which part could not be established, and why: a reason, or the check that failed
            and what it found.
    """
    reasons = {}
    for part in _lacking(architecture):
        why = next((missing[name] for name in _NAMED[part] if name in missing), None)
        if why is not None:
            reasons[part] = sentence(why)
        elif part != "unembed" and _is_bare(architecture) and "residual" in reasons:
            reasons[part] = f"nothing inside its layers is described: {reasons['residual']}"
        elif part in _USUAL and (part == "experts" or _has_no_attention(architecture)):
            reasons[part] = _USUAL[part]
    return replace(architecture, undescribed=reasons)


def _is_bare(architecture: Architecture) -> bool:
    """Whether only the input and output of some layers is described."""
    return any(
        not any((block.attn, block.cross, block.mixer, block.mlp))
        for block in blocks_of(architecture)
    )


def _has_no_attention(architecture: Architecture) -> bool:
    """Whether layers have a mixer, or an unknown way of adding branches, and no attention."""
    blocks = blocks_of(architecture)
    return any(not block.attn and (block.mixer or not block.residual) for block in blocks)


def _lacking(architecture: Architecture) -> Iterator[str]:
    blocks = blocks_of(architecture)
    if any(block.residual is None for block in blocks):
        yield "residual"
    if all(block.attn is None for block in blocks):
        yield "attn"
    if any(block.mlp and not (block.attn or block.mixer) for block in blocks):
        yield "mixer"
    if all(block.mlp is None or isinstance(block.mlp, Opaque) for block in blocks):
        yield "mlp"
    if any(isinstance(block.mlp, MoE) and block.mlp.experts is None for block in blocks):
        yield "experts"
    if architecture.unembed is None:
        yield "unembed"


def sentence(why: str) -> str:
    """A reason in words: for a failed check, what its failure means for the model."""
    from lensbridge.conformance.building import UNFIT
    from lensbridge.conformance.checks import CHECKS

    check, _, detail = why.partition(": ")
    if check == UNFIT:
        why = detail.partition(" does not fit ")[2].partition(": ")[2] or detail
    if check in _FAILED:
        return _FAILED[check]
    if check in {one.name for one in CHECKS}:
        return f"what was derived of it does not pass the check '{check}'"
    return shortened(why.rstrip("."))


def shortened(reason: str) -> str:
    """A reason in one line."""
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
