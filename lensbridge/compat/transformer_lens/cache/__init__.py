"""Keys and values that are kept from run to run."""

from lensbridge.compat.transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from lensbridge.compat.transformer_lens.cache.key_value_cache_entry import (
    TransformerLensKeyValueCacheEntry,
)

__all__ = ["TransformerLensKeyValueCache", "TransformerLensKeyValueCacheEntry"]
