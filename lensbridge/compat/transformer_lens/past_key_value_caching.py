"""The module and the name that TransformerLens 2 has for its cache of keys and values."""

from lensbridge.compat.transformer_lens.cache import (
    TransformerLensKeyValueCache as HookedTransformerKeyValueCache,
)
from lensbridge.compat.transformer_lens.cache import (
    TransformerLensKeyValueCacheEntry as HookedTransformerKeyValueCacheEntry,
)

__all__ = ["HookedTransformerKeyValueCache", "HookedTransformerKeyValueCacheEntry"]
