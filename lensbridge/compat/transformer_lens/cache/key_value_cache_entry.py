"""What one layer has kept."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TransformerLensKeyValueCacheEntry:
    """Keys and values of one layer, views of what HuggingFace's cache holds.

    Shapes: `[batch, pos, key/value heads, d_head]` each.
    """

    past_keys: Tensor
    past_values: Tensor
    frozen: bool = False
