"""Where TransformerLens 2 has its cache of keys and values, and what it calls it there."""

from lensbridge.compat.transformer_lens.cache import (
    TransformerLensKeyValueCache as HookedTransformerKeyValueCache,
)
from lensbridge.compat.transformer_lens.cache import (
    TransformerLensKeyValueCacheEntry as HookedTransformerKeyValueCacheEntry,
)

__all__ = ["HookedTransformerKeyValueCache", "HookedTransformerKeyValueCacheEntry"]
