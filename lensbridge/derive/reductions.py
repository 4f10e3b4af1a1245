"""Reductions: descriptions with less detail, one for each kind of failure."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TypeAlias

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
    Stack,
)

Branch: TypeAlias = Attention | MLP | GatedMLP | FusedGatedMLP | MoE


Reduction: TypeAlias = tuple[str, Architecture | None]
"""A part, and a description without it; None: nothing is left."""


def reduced(architecture: Architecture, told: str) -> Reduction:
    """The part that a failure is about, and a description without it."""
    about_it = reductions(architecture, told, about_it=True)
    return next(chain(about_it, reductions(architecture, told)), ("layers", None))


def reductions(
    architecture: Architecture, told: str, about_it: bool = False
) -> Iterator[tuple[str, Architecture]]:
    """Parts, and a description without each: all, or those that a failure is about."""
    for stack in _stacks(architecture, told):
        for part, about, smaller in _REDUCTIONS:
            less = smaller(stack) if not about_it or re.search(about, told) else stack
            if less != stack:
                named = part if stack is architecture else f"{stack.prefix} {part}"
                yield named, _with(architecture, stack, less)


def _stacks(architecture: Architecture, told: str) -> Iterator[Stack]:
    """The stacks that a failure may be about: those that it names, in this order; the main one."""
    named = (one for one in (architecture, *architecture.towers) if f"{one.prefix}." in told)
    yield from sorted(named, key=lambda one: told.index(f"{one.prefix}."))
    if f"{architecture.prefix}." not in told:
        yield architecture


def _with(architecture: Architecture, old: Stack, new: Stack) -> Architecture:
    if isinstance(new, Architecture):
        return new
    return replace(architecture, towers=tuple(new if t is old else t for t in architecture.towers))


def blocks_of(stack: Stack) -> tuple[Block, ...]:
    """The descriptions of a stack's layers."""
    block = stack.block
    return block if isinstance(block, tuple) else (block,)


def without_branches(before: Architecture, after: Architecture | None) -> set[str]:
    """Prefixes of the stacks in which the branches of a layer are not described any more."""
    if after is None:
        return {before.prefix}
    pairs = zip((before, *before.towers), (after, *after.towers), strict=True)
    return {new.prefix for old, new in pairs if _bare(new) > _bare(old)}


def _bare(stack: Stack) -> int:
    return sum(not any((b.attn, b.cross, b.mixer, b.mlp)) for b in blocks_of(stack))


def _with_blocks(stack: Stack, change: Callable[[Block], Block]) -> Stack:
    changed = tuple(dict.fromkeys(change(block) for block in blocks_of(stack)))
    return replace(stack, block=changed[0] if len(changed) == 1 else changed)


def _without_inside(stack: Stack) -> Stack:
    return _with_blocks(stack, by_its_ends)


def by_its_ends(block: Block) -> Block:
    """A block without a description of its branches; only what its norms compute is left."""
    norms = block.norms
    return Block(
        norms=Norms(kind=norms.kind, unit_offset=norms.unit_offset, eps=norms.eps), residual=None
    )


def without_attention(stack: Stack) -> Stack:
    """A stack with its attention as a module of which only the input and output are described."""

    def change(block: Block) -> Block:
        if block.attn is None:
            return block
        if not block.attn.path or block.mixer is not None:
            return replace(block, attn=None) if block.residual is None else by_its_ends(block)
        attn = block.attn
        writer, scale, skip_scale = _writer(block, attn), attn.scale, attn.skip_scale
        mixer = Mixer(attn.path, written_by=writer, scale=scale, skip_scale=skip_scale)
        return replace(block, attn=None, mixer=mixer)

    return _with_blocks(stack, change)


def _without_mlp(stack: Stack) -> Stack:
    def change(block: Block) -> Block:
        mlp = block.mlp
        if mlp is None:
            return block
        if isinstance(mlp, Opaque) or isinstance(mlp.written_by, tuple) or not mlp.path:
            return replace(block, mlp=None) if block.residual is None else by_its_ends(block)
        writer, scale, skip_scale = _writer(block, mlp), mlp.scale, mlp.skip_scale
        opaque = Opaque(mlp.path, written_by=writer, scale=scale, skip_scale=skip_scale)
        return replace(block, mlp=opaque)

    return _with_blocks(stack, change)


def _writer(block: Block, branch: Branch) -> str | None:
    """The module that writes a branch if its inside is not described: the norm after it, if any."""
    norms = block.norms
    behind = norms.post_attn if isinstance(branch, Attention) else norms.post_mlp
    assert not isinstance(branch.written_by, tuple)
    return branch.written_by if block.residual == "post_norm" else branch.written_by or behind


def _without_expert_parts(stack: Stack) -> Stack:
    """A mixture with less detail: first without its shared experts, then without the others."""
    shared = any(isinstance(b.mlp, MoE) and b.mlp.shared is not None for b in blocks_of(stack))

    def change(block: Block) -> Block:
        if not isinstance(block.mlp, MoE):
            return block
        less = replace(block.mlp, shared=None) if shared else replace(block.mlp, experts=None)
        return replace(block, mlp=less)

    return _with_blocks(stack, change)


def _without_cross(stack: Stack) -> Stack:
    crossed = any(block.cross is not None for block in blocks_of(stack))
    return _without_inside(stack) if crossed else stack


def _without_positions(stack: Stack) -> Stack:
    return replace(stack, pos_embed=None)


def _without_final_norm(stack: Stack) -> Stack:
    return replace(stack, final_norm=None)


def _without_head(stack: Stack) -> Stack:
    if not isinstance(stack, Architecture):
        return stack
    return replace(
        stack,
        unembed=None,
        unembed_bias=None,
        head_scale=None,
        logit_scale=None,
        logit_softcap=None,
        head_hidden=None,
    )


def _without_embeddings(stack: Stack) -> Stack:
    return replace(stack, embed=None, embed_scale=None, embed_mixed=False)


def _with_mixed_embeddings(stack: Stack) -> Stack:
    return replace(stack, embed_mixed=True)


_REDUCTIONS: tuple[tuple[str, str, Callable[[Stack], Stack]], ...] = (
    ("attention", r"\.attn\.|attn_(in|out)|[qkv]_input|pattern|attention", without_attention),
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
