"""One stack of layers, from its embeddings to its final norm."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensbridge.derive.block import find_block
from lensbridge.derive.chain import ModuleChain
from lensbridge.derive.embeddings import find_front
from lensbridge.derive.fields import Fields
from lensbridge.derive.found import FoundBlock
from lensbridge.derive.head import find_final_norm
from lensbridge.derive.heads import Sizes
from lensbridge.derive.layer import Layer, NotEstablished
from lensbridge.derive.norms import NormFacts, facts_of
from lensbridge.derive.reductions import without_attention
from lensbridge.derive.trace import Trace, TracedCall
from lensbridge.derive.unwritten import find_unwritten
from lensbridge.native.calling import is_plain
from lensbridge.native.settings import PlainSettings, settings_of
from lensbridge.native.table import rows_of, width_of
from lensbridge.native.wrappers import named_parts
from lensbridge.spec import Block, Dims, Stack, Streams

Side = Literal["", "encoder", "decoder"]
"""One of the two stacks of an encoder-decoder; "" is the only stack of other models."""


@dataclass
class FoundStack:
    """The description of a stack, which parts could not be established and why, and for formulas in
    it the others with the same value."""

    stack: Stack
    missing: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_stack(
    trace: Trace, chain: ModuleChain, embed: nn.Module | None, side: Side, written: bool = True
) -> FoundStack:
    """The description of one stack.

    Args:
        trace: the trace of the model.
        chain: the list of layers.
        embed: the module that embeds ids.
        side: which stack of the model it is.
        written: whether to find how branches are added to the stream.
    """
    search = _StackSearch(trace, chain, side, written)
    return FoundStack(search.stack(embed), search.missing, search.fields.alternatives)


def config_of(config: Any, side: Side) -> tuple[Any, str | None]:
    """The config with a stack's sizes, and its name in the model's own config."""
    inner = config.get_text_config(decoder=side != "encoder", encoder=side == "encoder")
    for name in config.sub_configs:
        if getattr(config, name, None) is inner:
            return inner, name
    own = getattr(config, side, None) if side else None  # T5 Gemma has a config for each side
    return (config, None) if not hasattr(own, "to_dict") else (own, side)


class _StackSearch:
    def __init__(self, trace: Trace, chain: ModuleChain, side: Side, written: bool) -> None:
        self.trace, self.chain, self.side, self.written = trace, chain, side, written
        self.width = int(chain.last.shape[-1])
        self.missing: dict[str, str] = {}
        core: Any = trace.model
        self.config, self.config_name = config_of(settings_of(core), side)
        self.fields = Fields(self.config, side)

    def stack(self, embed: nn.Module | None) -> Stack:
        front = find_front(self.trace, self.chain, embed, self.fields)
        final = find_final_norm(self.trace, self.chain)
        self.usual = self._kind_of_norm(final)
        self.embed_width = width_of(embed) or 0
        final = None if "final_norm" in self.missing else final
        blocks = self._blocks()
        sizes = [block.sizes for block in blocks]
        self.missing.update(front.missing)
        kinds = self._kinds(blocks)
        stack = Stack(
            prefix=self.side or "blocks",
            blocks=self.chain.path,
            block=kinds[0] if len(kinds) == 1 else tuple(kinds),
            embed=front.embed,
            embed_scale=front.embed_scale,
            pos_embed=front.pos_embed,
            embed_norm=front.embed_norm,
            final_norm=None if final is None else final.path,
            streams=self._streams(front.embed),
            positions="absolute" if any(block.absolute for block in blocks) else None,
            dims=self._dims(sizes, embed, front.pos_embed),
            config=self.config_name,
        )
        unsaid = self._unsaid_heads(sizes, stack.dims)
        if unsaid:
            self.missing["attn"] = unsaid
        return without_attention(stack) if unsaid else stack

    def _kind_of_norm(self, final: TracedCall | None) -> NormFacts:
        try:
            if final is not None:
                return facts_of(final, self.fields, self.trace.tolerance)
        except NotEstablished as error:
            self.missing["final_norm"] = str(error)
        return NormFacts("LN", False, None)

    def _blocks(self) -> list[FoundBlock]:
        found = []
        for call, given in zip(self.chain.calls, self.chain.given, strict=True):
            block = None
            if self.written:
                block = find_block(Layer(self.trace, call, given), self.fields, self.usual)
            if block is None or block.block.residual is None:
                reason = _UNKNOWN if block is None else block.missing["residual"]
                block = self._unwritten(call, given, reason)
            found.append(block)
        return found

    def _unwritten(self, call: TracedCall, given: Tensor, reason: str) -> FoundBlock:
        """The branches of a layer, read at the stream's width or at that of the embedding: several
        streams may be side by side in one vector."""
        first = given if given.ndim == 3 else next(iter(self.trace.inputs.values()))
        found = None
        for width in dict.fromkeys((self.width, self.embed_width)):
            if not width or self.chain.last.shape[-1] % width:
                continue
            shape = torch.Size((*first.shape[:2], width))
            layer = Layer(self.trace, call, given, shape)
            other = find_unwritten(layer, self.fields, self.usual, reason)
            if found is None or _named(other.block) > _named(found.block):
                found, self.width = other, width
        assert found is not None
        return found

    def _kinds(self, blocks: list[FoundBlock]) -> list[Block]:
        """One description for each kind of layer."""
        by_shape: dict[tuple[str, ...], list[FoundBlock]] = {}
        for call, block in zip(self.chain.calls, blocks, strict=True):
            shape = tuple(f"{p}:{type(m).__name__}" for p, m in call.module.named_modules() if p)
            by_shape.setdefault(shape, []).append(block)
        merged = [self._merged(alike) for alike in by_shape.values()]
        kinds = dict.fromkeys(_with_bias_of(merged, block) for block in merged)
        return sorted(kinds, key=lambda block: -_named(block))

    def _merged(self, alike: list[FoundBlock]) -> Block:
        """What layers of one kind have in common."""
        blocks = [_as_rotary(block.block, alike) for block in alike]
        most = max(blocks, key=blocks.count)
        self.missing.update(alike[blocks.index(most)].missing)
        for i, block in enumerate(blocks):
            if block != most and not _is_less(block, most):
                self.missing.setdefault("layers", f"layer {i} differs from others of its kind")
        return most

    def _streams(self, embed: str | None) -> Streams | None:
        """Where batch and positions are, and the axis of several streams if there is one."""
        shape = self.chain.last.shape
        given = next(iter(self.trace.inputs.values()))
        if self.side == "decoder":
            given = self.trace.inputs["decoder_input_ids"]
        rows, positions = given.shape[:2]
        if len(shape) == 3 and rows != positions and shape[:2] == (positions, rows):
            calls = [] if embed is None else self.trace.of(embed)
            first = any(
                one.output is not None and one.output.shape[:2] == (rows, positions)
                for one in calls
            )
            return "positions_first_in_layers" if first else "positions_first"
        if len(shape) != 4:
            return "side_by_side" if self.width < shape[-1] else None
        return "streams_last" if shape[:2] == given.shape[:2] else "streams_first"

    def _dims(
        self, sizes: list[Sizes | None], embed: nn.Module | None, pos_embed: str | None
    ) -> Dims:
        wanted = {
            "layers": len(self.chain.calls),
            "d_model": self.width,
        }
        there = [one for one in sizes if one is not None]
        if there:
            wanted["heads"] = there[0].heads
        kv_heads = {one.kv_heads for one in there}
        if len(kv_heads) == 1 and kv_heads != {there[0].heads}:
            wanted["kv_heads"] = there[0].kv_heads
        said: dict[str, Any] = {}
        for role, value in wanted.items():
            name = self.fields.holding(role, value)
            said[role] = value if name is None else name
        said.update(self._heads_by_layer(sizes))
        rows = rows_of(embed)
        if rows is None and is_plain(self.trace.model) and self.trace.logits is not None:
            rows = self.trace.logits.shape[-1]
        if rows is not None and "vocab_size" not in self.fields.values:
            said["vocab"] = self.fields.holding("vocab", rows) or rows
        said["context"] = self._context(pos_embed)
        return Dims(**said)

    def _heads_by_layer(self, sizes: list[Sizes | None]) -> dict[str, str]:
        """The fields with the numbers of heads, where these differ from layer to layer."""
        heads, kv_heads = _counts(sizes, "heads"), _counts(sizes, "kv_heads")
        if not _differ(heads) and not _differ(kv_heads):
            return {}
        names = {"heads": self.fields.listing(heads)}
        if kv_heads != heads:
            names["kv_heads"] = self.fields.listing(kv_heads)
        return {role: name for role, name in names.items() if name is not None}

    def _unsaid_heads(self, sizes: list[Sizes | None], dims: Dims) -> str | None:
        """Why the number of heads cannot be said, if it cannot."""
        counts = _counts(sizes, "heads")
        held = self.fields.values.get(str(dims.heads))
        if not _differ(counts) or isinstance(held, (list, tuple)):
            return None
        told = ", ".join(str(one or "none") for one in counts[:_MOST])
        more = ", ..." if len(counts) > _MOST else ""
        return (
            f"its layers have different numbers of heads ({told}{more}), and no list in the config "
            "has them"
        )

    def _context(self, pos_embed: str | None) -> str | int | None:
        for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
            held = self.fields.values.get(name)
            if isinstance(held, int) and held > 0:
                return name
        if not isinstance(self.config, PlainSettings) or pos_embed is None:
            return None
        rows = rows_of(dict(named_parts(self.trace.model)).get(pos_embed))
        return rows if rows is None else self.fields.holding("context", rows) or rows


def _counts(sizes: list[Sizes | None], role: str) -> list[int | None]:
    return [None if one is None else getattr(one, role) for one in sizes]


def _differ(counts: list[int | None]) -> bool:
    return len({*counts} - {None}) > 1


_MOST = 8
"""The number of layers that a message lists."""

_UNKNOWN = "what its branches give is not what the checks find in the stream"


def _with_bias_of(blocks: list[Block], block: Block) -> Block:
    """A block with the embedding of relative positions, which only the first layer may have."""
    attn = block.attn
    for other in blocks:
        bias = None if other.attn is None else other.attn.position_bias
        if attn is not None and bias is not None and _path(other) == attn.path:
            return replace(block, attn=replace(attn, position_bias=bias))
    return block


def _path(block: Block) -> str | None:
    return None if block.attn is None else block.attn.path


def _named(part: Any) -> int:
    """How detailed a description is: layers are tried with the most detailed one first."""
    if not is_dataclass(part):
        return int(part is not None and part is not False)
    return sum(_named(getattr(part, one.name)) for one in fields(part))


def _as_rotary(block: Block, alike: list[FoundBlock]) -> Block:
    """A block with rotary attention if some of its kind have it; others may lack it (NoPE)."""
    turned = any(other.block.attn is not None and other.block.attn.rotary for other in alike)
    if block.attn is None or not turned:
        return block
    return replace(block, attn=replace(block.attn, rotary=True))


def _is_less(block: Block, most: Block) -> bool:
    """Whether a layer shows only a part of what the others show.

    In a first layer a norm without a gain may not show, because its input is normed already.
    """
    return block.residual is None or all(
        getattr(block, part) in (getattr(most, part), None)
        for part in Block.__dataclass_fields__
        if part != "norms"
    )
