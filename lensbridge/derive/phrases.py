"""A description in words."""

from collections.abc import Iterator
from typing import Any

from lensbridge.spec import Architecture, Block, FusedQKV, KernelQKV, LatentQKV, Stack


def words_for(architecture: Architecture) -> list[str]:
    """One line for each part that is described."""
    lines = [line for stack in (architecture, *architecture.towers) for line in _stack(stack)]
    if architecture.head_hidden is not None:
        lines.append(f"'{architecture.head_hidden}' before the head")
    if architecture.pooler is not None:
        lines.append(f"the pooler '{architecture.pooler}'")
    if architecture.unembed is not None:
        lines.append(f"the head '{architecture.unembed}'{_times(architecture.logit_scale)}")
    return lines


def _stack(stack: Stack) -> Iterator[str]:
    if stack.embed is not None:
        yield f"the embedding '{stack.embed}'{_times(stack.embed_scale)}"
    if stack.pos_embed is not None:
        yield f"the positions '{stack.pos_embed}'"
    if stack.embed_norm is not None:
        yield f"'{stack.embed_norm}', a norm on the embeddings"
    yield f"the layers '{stack.blocks}'"
    for block in stack.block if isinstance(stack.block, tuple) else (stack.block,):
        yield _block(block)
    if stack.final_norm is not None:
        yield f"the final norm '{stack.final_norm}'"


def _block(block: Block) -> str:
    parts = [f"{_attention(part)}" for part in (block.attn, block.cross) if part is not None]
    if block.mixer is not None:
        parts.append(f"'{block.mixer.path}' at its boundaries")
    if block.mlp is not None:
        parts.append(f"{type(block.mlp).__name__} '{block.mlp.path}'{_times(block.mlp.scale)}")
    if block.residual is None:
        inside = f", and inside it {', '.join(parts)}" if parts else ""
        return f"in each layer: its input and output{inside}"
    return f"in each layer, {block.residual.replace('_', '-')}: {', '.join(parts)}"


def _attention(attn: Any) -> str:
    known = {FusedQKV: "one projection", LatentQKV: "a latent", KernelQKV: "what its kernel gets"}
    kind = known.get(type(attn.qkv), "projections")
    turned = ", rotary" if attn.rotary else ""
    return f"attention '{attn.path}' from {kind}{turned}{_times(attn.scale)}"


def _times(scale: float | str | None) -> str:
    return "" if scale is None else f" times {scale}"
