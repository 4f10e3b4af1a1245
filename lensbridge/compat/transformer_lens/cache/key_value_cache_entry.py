"""The keys and values of one layer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TransformerLensKeyValueCacheEntry:
    """Keys and values of one layer, views of those in HuggingFace's cache.

    Shapes: `[batch, pos, key/value heads, d_head]` each.
    """

    past_keys: Tensor
    past_values: Tensor
    frozen: bool = False
