"""The context length of a model, with the scaling of its rotary embedding."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lensbridge.native.resolve.finder import Finder
from lensbridge.spec import Dims


def context_of(finder: Finder, dims: Dims, pos_embed: str | None) -> int | None:
    """The number of positions that a model takes; None if there is no limit.

    In a position table with a row for padding (RoBERTa), positions start after that row.

    A scaled rotary embedding (linear, dynamic, YaRN, longrope, Llama 3) reaches `factor` times as
    far as the number of positions in training. Configs have that number in
    `original_max_position_embeddings`, or else in the field of the context length.
    """
    limit = finder.optional_size(dims.context)
    if limit is None or limit < 0:  # XLNet says -1
        return None
    table = None if pos_embed is None else finder.top(pos_embed)
    if type(table) is nn.Embedding and table.padding_idx is not None:
        return min(limit, table.num_embeddings - 1 - table.padding_idx)
    return max([limit, *(_reach(rope, limit, finder) for rope in _ropes(finder))])


def _ropes(finder: Finder) -> Iterator[Mapping[str, Any]]:
    """The settings of the rotary embedding; all of them if kinds of layers have their own."""
    for name in ("rope_parameters", "rope_scaling"):
        found = finder.optional(name)
        if isinstance(found, Mapping):
            yield found
            yield from (one for one in found.values() if isinstance(one, Mapping))


def _reach(rope: Mapping[str, Any], limit: int, finder: Finder) -> int:
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or rope.get("rope_type", rope.get("type")) == "default":
        return limit
    original = rope.get("original_max_position_embeddings")
    original = original or finder.optional("original_max_position_embeddings") or limit
    return int(original * factor)
