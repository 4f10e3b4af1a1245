"""One stack of a model: its layers, its sizes, and what is before and behind the layers."""

from dataclasses import replace

from torch import nn

from lensbridge.native.norm import Norm
from lensbridge.native.parts import BlockPart, MLPPart, MoEPart, Sizes, StackPart
from lensbridge.native.resolve.blocks import BlockResolver
from lensbridge.native.resolve.context import context_of
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.resolve.layers import Layer, layers_of
from lensbridge.native.table import padding_of, rows_of
from lensbridge.points.names import LAYER
from lensbridge.spec import Stack

_RESIDUAL_AXES = {
    None: "b p m",
    "positions_first": "b p m",
    "positions_first_in_layers": "b p m",
    "streams_first": "r b p m",
    "streams_last": "b p r m",
    "side_by_side": "b p c",
    "end_to_end": "b s m",
    "flat": "p m",
    "grid": "b p m",
}


def stack_of(outer: Finder, spec: Stack) -> StackPart:
    """A stack: its layers, and what is before and behind them.

    Raises:
        ArchitectureMismatchError: a module, config field or shape is not as described.
    """
    finder = outer.at_config(spec.config)
    _require_prefix(finder, spec.prefix)
    layers = layers_of(finder, spec.blocks)
    cycles = int(finder.scale(spec.cycles))
    blocks = _blocks(finder, spec, layers, cycles)
    embed_norm = spec.embed_norm if spec.embed_norm is None or finder.has(spec.embed_norm) else None
    ln_embed = _norm(finder, spec, embed_norm)
    blocks = _entered_after(ln_embed, blocks)
    pos_embed = None if spec.pos_embed is None else finder.top(spec.pos_embed)
    return StackPart(
        prefix=spec.prefix,
        path=layers[0].path.rpartition(".")[0],
        sizes=_sizes(finder, spec, blocks),
        config=finder.config,
        embed=None if spec.embed is None else finder.top(spec.embed),
        embed_scale=finder.embed_scale(spec.embed_scale),
        embed_overwritten=spec.embed_overwritten,
        pos_embed=pos_embed,
        takes_positions=spec.positions == "absolute" or _takes_positions(pos_embed, blocks),
        residual_axes="r b p m" if blocks[0].pair else _RESIDUAL_AXES[spec.streams],
        positions_first=str(spec.streams).startswith("positions_first"),
        is_grid=spec.streams == "grid",
        embeds_batch_first=spec.streams == "positions_first_in_layers",
        ln_embed=ln_embed,
        blocks=blocks,
        ln_final=_norm(finder, spec, spec.final_norm),
        cycles=cycles,
        embed_padding=spec.embed_padding,
    )


def _require_prefix(finder: Finder, prefix: str) -> None:
    if not LAYER.fullmatch(f"{prefix}.0."):
        raise finder.mismatch(
            f"names cannot begin with prefix={prefix!r}: it is 'blocks', 'encoder', 'decoder' "
            "or one word before '.blocks', as in 'vision.blocks'."
        )


def _blocks(finder: Finder, spec: Stack, layers: list[Layer], cycles: int) -> tuple[BlockPart, ...]:
    """Every layer in the order in which they run, each as often as it does."""
    count = finder.size(spec.dims.layers) * cycles
    if count % len(layers):
        raise finder.mismatch(
            f"{spec.blocks!r} has {len(layers)} layers and dims.layers ({spec.dims.layers!r}) is "
            f"{count}."
        )
    resolver = BlockResolver(finder, spec)
    repeats = count // len(layers)
    blocks = [
        resolver.block(layers[i % len(layers)], i, i // len(layers), repeats) for i in range(count)
    ]
    length = _unbroken(finder, spec.interrupted, count // cycles)
    return tuple(
        replace(one, begins_anew=i > 0 and i % length == 0) for i, one in enumerate(blocks)
    )


def _norm(finder: Finder, spec: Stack, path: str | None) -> Norm | None:
    """A norm outside the layers, which is of the kind of those in them."""
    if path is None:
        return None
    first = spec.block[0] if isinstance(spec.block, tuple) else spec.block
    kind = replace(first.norms, inner=None, gate=None)
    return finder.norm(finder.top(path), kind, finder.size(spec.dims.d_model), path)


def _unbroken(finder: Finder, interrupted: bool | str, count: int) -> int:
    """How many layers run after each other before something else changes the stream."""
    every = finder.size(interrupted) if isinstance(interrupted, str) else int(interrupted)
    return every if every > 0 else count


def _entered_after(norm: Norm | None, blocks: tuple[BlockPart, ...]) -> tuple[BlockPart, ...]:
    """The layers, where the norm of the embeddings may be a module of the first one."""
    first = blocks[0]
    if norm is None or first.ln1 is None or norm.module not in set(first.module.modules()):
        return blocks
    return (replace(first, begins=first.ln1.module), *blocks[1:])


def _takes_positions(pos_embed: nn.Module | None, blocks: tuple[BlockPart, ...]) -> bool:
    """Whether positions are absolute, and not counted by the model from the padding token."""
    attention = [block.attn for block in blocks if block.attn is not None]
    if any(attn.rotary or attn.position_bias for attn in attention):
        return False
    if pos_embed is None:
        return bool(attention)
    is_table = pos_embed._parameters.get("weight") is not None
    return not is_table or padding_of(pos_embed) is None


def _sizes(finder: Finder, spec: Stack, blocks: tuple[BlockPart, ...]) -> Sizes:
    dims = finder.dims_of(spec.dims, 0)
    attn = next((block.attention for block in blocks if block.attention is not None), None)
    mlp = next((block.mlp for block in blocks if isinstance(block.mlp, MLPPart)), None)
    return Sizes(
        n_layers=len(blocks),
        d_model=finder.size(dims.d_model),
        n_heads=attn.n_heads if attn else finder.optional_size(dims.heads) or 0,
        n_key_value_heads=attn.n_kv if attn else 0,
        d_head=attn.d_head if attn else 0,
        d_mlp=mlp.up.d if mlp else _expert_width(blocks),
        d_vocab=finder.optional_size(dims.vocab) or _rows(finder, spec.embed),
        n_ctx=context_of(finder, dims, spec.pos_embed),
    )


def _rows(finder: Finder, path: str | None) -> int:
    """Of an embedding, where no config field says how many tokens there are."""
    return 0 if path is None else rows_of(finder.top(path)) or 0


def _expert_width(blocks: tuple[BlockPart, ...]) -> int:
    for block in blocks:
        if isinstance(block.mlp, MoEPart) and block.mlp.experts:
            return int(block.mlp.experts.w_out().shape[1])
    return 0
