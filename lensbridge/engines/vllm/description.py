"""Descriptions of vLLM's module trees, made from those of HuggingFace's.

vLLM keeps HuggingFace's names and puts some projections into one: its models say which, in
`packed_modules_mapping`. A projection of q, k and v is always all q, all k, all v.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lensbridge.errors import UnsupportedArchitectureError
from lensbridge.native.resolve import select
from lensbridge.spec import (
    Architecture,
    Attention,
    Block,
    FusedGatedMLP,
    FusedQKV,
    GatedMLP,
    SplitQKV,
)

_QKV, _GATE_UP = "qkv_proj", "gate_up_proj"
"""What vLLM calls projections that it puts together, where a model does not say."""


def described(core: nn.Module) -> Architecture:
    """How to read one of vLLM's models.

    Raises:
        UnsupportedArchitectureError: nobody has described the class, or vLLM runs HuggingFace's own
            code for it.
    """
    if type(core).__name__.startswith("Transformers"):
        raise UnsupportedArchitectureError(
            "vLLM has no code of its own for this model and runs HuggingFace's modules, changed as "
            f"it loads them ({type(core).__name__}). Load the model with lensbridge.load(name)."
        )
    spec = select(core, None).architecture
    packed = _packed(core)
    blocks = spec.block if isinstance(spec.block, tuple) else (spec.block,)
    several = tuple(_block(one, packed, _inside(core, spec.blocks)) for one in blocks)
    return replace(
        spec,
        name=f"{spec.name} in vLLM",
        block=several if isinstance(spec.block, tuple) else several[0],
        unembed=None,  # it is called by another way: `parts.py`
        embed_scale=_embed_scale(core) or spec.embed_scale,
        embed_overwritten=True,
    )


def _embed_scale(core: nn.Module) -> str | None:
    """The buffer that vLLM's Gemma multiplies embeddings by, which HuggingFace's do themselves."""
    buffers = (name for name, _ in core.named_buffers())
    return next((name for name in buffers if name.endswith(".normalizer")), None)


def _inside(core: nn.Module, blocks: str | tuple[str, ...]) -> frozenset[str]:
    """The paths of all modules inside the first layer."""
    starts = [f"{one}.0." for one in ((blocks,) if isinstance(blocks, str) else blocks)]
    names = [name for name, _ in core.named_modules()]
    return frozenset(
        name.removeprefix(start) for start in starts for name in names if name.startswith(start)
    )


def _packed(core: nn.Module) -> Mapping[str, str]:
    """The names of projections in HuggingFace's model -> that of the one that has them all."""
    told: Mapping[str, Any] = getattr(core, "packed_modules_mapping", {})
    usual = {_QKV: ["q_proj", "k_proj", "v_proj"], _GATE_UP: ["gate_proj", "up_proj"]}
    return {name: whole for whole, names in {**usual, **told}.items() for name in names}


def _block(block: Block, packed: Mapping[str, str], inside: frozenset[str]) -> Block:
    attn = None if block.attn is None else _attention(block.attn, packed)
    return replace(
        block,
        attn=_written(attn, inside),
        mlp=_written(_mlp(block.mlp, packed), inside),
        flattens=False,  # every value has one axis for all tokens
    )


def _written(branch: Any, inside: frozenset[str]) -> Any:
    """A branch; HuggingFace may have a dropout after it, and vLLM has none."""
    written_by = getattr(branch, "written_by", None)
    named = isinstance(written_by, str) and written_by not in inside
    return replace(branch, written_by=None) if named else branch


def _attention(attn: Attention, packed: Mapping[str, str]) -> Attention:
    qkv, axes = attn.qkv, attn.qk_norm_axes
    attn = replace(attn, qk_norm_axes="flat" if axes == "flat" else "positions_first")
    if isinstance(qkv, SplitQKV) and qkv.q in packed:
        return replace(attn, qkv=FusedQKV(packed[qkv.q], "blocked"))
    return replace(attn, qkv=FusedQKV(qkv.path, "blocked")) if isinstance(qkv, FusedQKV) else attn


def _mlp(mlp: Any, packed: Mapping[str, str]) -> Any:
    if not isinstance(mlp, GatedMLP) or mlp.gate not in packed:
        return mlp
    return FusedGatedMLP(
        path=mlp.path,
        gate_up=packed[mlp.gate],
        down=mlp.down,
        act=mlp.act,
        written_by=mlp.written_by,
        scale=mlp.scale,
    )
