"""Accepts a derived description only if the conformance checks pass on that very model.

If a check fails, the part that it is about is described with less detail: attention and MLPs by
their inputs and outputs only, then whole layers.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from lensbridge.errors import UnsupportedArchitectureError
from lensbridge.spec import (
    MLP,
    Architecture,
    Attention,
    Block,
    FusedGatedMLP,
    GatedMLP,
    Mixer,
    MoE,
    Norms,
    Opaque,
)

if TYPE_CHECKING:
    from torch import nn

    from lensbridge.conformance.check import Check, Row
    from lensbridge.derive.derivation import Derivation

Branch: TypeAlias = Attention | MLP | GatedMLP | FusedGatedMLP | MoE

_TRIES = 9
_MOST, _LONGEST = 5, 300


def accepted(model: "nn.Module", derivation: "Derivation") -> "Derivation":
    """The derivation, or one with less detail, to which the model conforms.

    Raises:
        UnsupportedArchitectureError: there is none. The message names the part that could not be
            established, and where a starter adapter file comes from.
    """
    first = derivation
    reasons: dict[str, str] = {}
    for _ in range(_TRIES):
        if derivation.architecture is None:
            break
        told = first_failure(model, derivation.architecture)
        if told is None:
            missing = {**derivation.missing, **reasons}
            explained = explain(derivation.architecture, missing)
            return replace(derivation, architecture=explained, missing=missing)
        part, smaller = _reduced(derivation.architecture, told)
        reasons[part] = told
        derivation = replace(derivation, architecture=smaller)
    raise UnsupportedArchitectureError(_refusal(model, first, reasons))


def explain(architecture: Architecture, missing: Mapping[str, str]) -> Architecture:
    """The description with the reasons why parts of its layers are not described."""
    reasons = {}
    for part in _lacking(architecture):
        named = (name for name in _NAMED[part] if name in missing)
        why = next(named, None)
        if why is not None:
            reasons[part] = shortened(missing[why].partition("; they differ")[0].rstrip("."))
    return replace(architecture, undescribed=reasons)


def _lacking(architecture: Architecture) -> Iterator[str]:
    blocks = _blocks(architecture)
    if any(block.residual is None for block in blocks):
        yield "residual"
    if all(block.attn is None for block in blocks):
        yield "attn"
    if all(block.mlp is None or isinstance(block.mlp, Opaque) for block in blocks):
        yield "mlp"


_NAMED = {
    "residual": ("inside of the layers", "residual", "layers"),
    "attn": ("attention", "attn"),
    "mlp": ("MLP", "mlp"),
}
"""Names under which a derivation keeps the reason why a part is not described."""


def first_failure(model: "nn.Module", architecture: Architecture) -> str | None:
    """The first conformance check that a model fails under a description, with the reason.

    The model is left as it is: its modes, its gradients, the random number generator.
    """
    from lensbridge.derive.probe import probe_of
    from lensbridge.native.trial import undisturbed

    with undisturbed(model, gradients=True):
        failures = _failures(model, probe_of(model), architecture)
    return f"{failures[0].check}: {failures[0].detail}" if failures else None


def _failures(model: "nn.Module", probe: "nn.Module", architecture: Architecture) -> "list[Row]":
    """The first check that fails, on the copy or on the model itself; empty if all pass."""
    from lensbridge.conformance.checks import SOUND
    from lensbridge.conformance.expect import INSENSITIVE

    failures = _first_failure(probe, architecture, SOUND)
    if failures or probe is model:
        return failures
    return _first_failure(model, architecture, SOUND, INSENSITIVE)


def _first_failure(
    model: "nn.Module",
    architecture: Architecture,
    checks: "Sequence[Check]",
    passing: str = "\0",
) -> "list[Row]":
    from lensbridge.conformance.check import Row, run_check
    from lensbridge.conformance.report import subject_of
    from lensbridge.conformance.subject import RUN_ERRORS, told

    try:
        subject = subject_of(model, architecture)
    except RUN_ERRORS as error:
        reason = told(error)
        return [Row("the description fits the model", type(model).__name__, "", "failed", reason)]
    rows = (run_check(check, subject) for check in checks)
    failed = (row for row in rows if row.status == "failed" and passing not in row.detail)
    return list(islice(failed, 1))


def _reduced(architecture: Architecture, told: str) -> tuple[str, Architecture | None]:
    """The part that a failure is about, and a description without it."""
    for part, about, smaller in _REDUCTIONS:
        if re.search(about, told):
            less = smaller(architecture)
            if less != architecture:
                return part, less
    for part, _, smaller in _REDUCTIONS:
        less = smaller(architecture)
        if less != architecture:
            return part, less
    return "layers", None


def _blocks(architecture: Architecture) -> tuple[Block, ...]:
    block = architecture.block
    return block if isinstance(block, tuple) else (block,)


def _with_blocks(architecture: Architecture, change: Callable[[Block], Block]) -> Architecture:
    changed = tuple(dict.fromkeys(change(block) for block in _blocks(architecture)))
    return replace(architecture, block=changed[0] if len(changed) == 1 else changed)


def _without_inside(architecture: Architecture) -> Architecture:
    return _with_blocks(architecture, by_its_ends)


def by_its_ends(block: Block) -> Block:
    """A block without a description of its branches; only what its norms compute is left."""
    norms = block.norms
    return Block(
        norms=Norms(kind=norms.kind, unit_offset=norms.unit_offset, eps=norms.eps), residual=None
    )


def _without_attention(architecture: Architecture) -> Architecture:
    def change(block: Block) -> Block:
        if block.attn is None:
            return block
        if not block.attn.path or block.mixer is not None:
            return by_its_ends(block)
        attn = block.attn
        writer, scale, skip_scale = _writer(block, attn), attn.scale, attn.skip_scale
        mixer = Mixer(attn.path, written_by=writer, scale=scale, skip_scale=skip_scale)
        return replace(block, attn=None, mixer=mixer)

    return _with_blocks(architecture, change)


def _without_mlp(architecture: Architecture) -> Architecture:
    def change(block: Block) -> Block:
        mlp = block.mlp
        if mlp is None:
            return block
        if isinstance(mlp, Opaque) or isinstance(mlp.written_by, tuple) or not mlp.path:
            return by_its_ends(block)
        writer, scale, skip_scale = _writer(block, mlp), mlp.scale, mlp.skip_scale
        opaque = Opaque(mlp.path, written_by=writer, scale=scale, skip_scale=skip_scale)
        return replace(block, mlp=opaque)

    return _with_blocks(architecture, change)


def _writer(block: Block, branch: Branch) -> str | None:
    """The module that writes a branch if its inside is not described: the norm after it, if any."""
    norms = block.norms
    behind = norms.post_attn if isinstance(branch, Attention) else norms.post_mlp
    assert not isinstance(branch.written_by, tuple)
    return branch.written_by if block.residual == "post_norm" else branch.written_by or behind


def _without_expert_parts(architecture: Architecture) -> Architecture:
    """A mixture with less detail: first without its shared experts, then without the others."""
    shared = any(isinstance(b.mlp, MoE) and b.mlp.shared is not None for b in _blocks(architecture))

    def change(block: Block) -> Block:
        if not isinstance(block.mlp, MoE):
            return block
        less = replace(block.mlp, shared=None) if shared else replace(block.mlp, experts=None)
        return replace(block, mlp=less)

    return _with_blocks(architecture, change)


def _without_cross(architecture: Architecture) -> Architecture:
    crossed = any(block.cross is not None for block in _blocks(architecture))
    return _without_inside(architecture) if crossed else architecture


def _without_positions(architecture: Architecture) -> Architecture:
    return replace(architecture, pos_embed=None)


def _without_final_norm(architecture: Architecture) -> Architecture:
    return replace(architecture, final_norm=None)


def _without_head(architecture: Architecture) -> Architecture:
    return replace(
        architecture,
        unembed=None,
        unembed_bias=None,
        head_scale=None,
        logit_scale=None,
        logit_softcap=None,
        head_hidden=None,
    )


def _without_embeddings(architecture: Architecture) -> Architecture:
    return replace(architecture, embed=None, embed_scale=None, embed_mixed=False)


def _with_mixed_embeddings(architecture: Architecture) -> Architecture:
    return replace(architecture, embed_mixed=True)


_REDUCTIONS: tuple[tuple[str, str, Callable[[Architecture], Architecture]], ...] = (
    ("attention", r"\.attn\.|attn_(in|out)|[qkv]_input|pattern|attention", _without_attention),
    ("experts", r"expert|mlp\.shared|router", _without_expert_parts),
    ("MLP", r"\.mlp\.|mlp_(in|out)|MLP|expert|router|neuron", _without_mlp),
    ("cross-attention", r"cross", _without_cross),
    ("positions", r"pos_embed|positions are", _without_positions),
    ("head", r"hook_logits|the head makes logits|logits are the output", _without_head),
    ("final norm", r"ln_final", _without_final_norm),
    ("embeddings", r"embeddings make the stream", _with_mixed_embeddings),
    ("token embedding", r"hook_embed", _without_embeddings),
    ("inside of the layers", r"", _without_inside),
)  # fmt: skip
"""Parts, a pattern for the failures that are about each, and how to describe less of it."""


def _refusal(model: "nn.Module", first: "Derivation", reasons: dict[str, str]) -> str:
    return "\n".join(_lines(model, first, reasons))


def _lines(model: "nn.Module", first: "Derivation", reasons: dict[str, str]) -> Iterator[str]:
    yield f"No architecture could be derived for {type(model).__name__} that conforms to it."
    why = {**first.missing, **reasons}
    for part, reason in list(why.items())[:_MOST]:
        yield f"- {part}: {shortened(reason)}"
    if len(why) > _MOST:
        yield f"- and {len(why) - _MOST} more parts"
    if first.architecture is not None:
        yield (
            "lensbridge.derive.derive(hf_model).render() is the adapter file of what could be "
            "derived. Correct it, and pass it as load(..., architecture=...)."
        )


def shortened(reason: str) -> str:
    """A reason in one line."""
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
