"""`past_kv_cache`: HuggingFace's cache of keys and values under TransformerLens's names."""

from copy import copy
from typing import Any

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.cache.key_value_cache_entry import (
    TransformerLensKeyValueCacheEntry,
)
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.errors import InputError


class TransformerLensKeyValueCache:
    """Keys and values of the positions that the model was run on so far.

    Args:
        cfg: the model's config.
        device: the model's device.
        batch_size: how many rows; a run with another number is refused.

    Attributes:
        kept: HuggingFace's cache, which can be passed as `past_key_values=` too.
        previous_attention_mask: `[batch, pos]`, 1 for tokens and 0 for padding.
        frozen: whether runs do not add to it.
    """

    def __init__(self, cfg: HookedTransformerConfig, device: Any, batch_size: int = 1) -> None:
        from transformers import DynamicCache

        self.cfg = cfg
        self.kept: Any = DynamicCache()
        self.previous_attention_mask = torch.ones((batch_size, 0), dtype=torch.int, device=device)
        self.frozen = False

    @classmethod
    def init_cache(
        cls, cfg: HookedTransformerConfig, device: Any, batch_size: int = 1
    ) -> "TransformerLensKeyValueCache":
        """An empty cache."""
        return cls(cfg, device, batch_size)

    def freeze(self) -> None:
        """Let runs from now on read it without adding to it."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Let runs add to it again."""
        self.frozen = False

    def as_frozen(self) -> "TransformerLensKeyValueCache":
        """The same cache for a run that does not add to it."""
        other = copy(self)
        other.frozen = True
        return other

    @property
    def entries(self) -> list[TransformerLensKeyValueCacheEntry]:
        """The keys and values of each layer."""
        return [self[i] for i in range(self.cfg.n_layers)]

    def __getitem__(self, layer: int) -> TransformerLensKeyValueCacheEntry:
        if layer >= len(self.kept.layers) or self.kept.layers[layer].keys is None:
            heads = self.cfg.n_key_value_heads or self.cfg.n_heads
            shape = (len(self.previous_attention_mask), 0, heads, self.cfg.d_head)
            nothing = torch.empty(
                shape, dtype=self.cfg.dtype, device=self.previous_attention_mask.device
            )
            return TransformerLensKeyValueCacheEntry(nothing, nothing, self.frozen)
        one = self.kept.layers[layer]
        keys, values = one.keys.transpose(1, 2), one.values.transpose(1, 2)
        return TransformerLensKeyValueCacheEntry(keys, values, self.frozen)

    def append_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """The mask so far with that of new tokens added; it is kept unless frozen.

        Shapes: `[batch, new]` -> `[batch, pos + new]`
        """
        whole = torch.cat([self.previous_attention_mask, attention_mask.int()], dim=-1)
        if not self.frozen:
            self.previous_attention_mask = whole
        return whole

    def whole_mask(self, attention_mask: Tensor, new: int) -> Tensor:
        """The mask of a run: that of all positions as it is, that of the new ones added.

        Args:
            attention_mask: `[batch, new]` or `[batch, pos + new]`
            new: how many positions the run adds.

        Shapes: `[batch, pos + new]`
        """
        if attention_mask.shape[-1] == new:
            return self.append_attention_mask(attention_mask)
        if not self.frozen:
            self.previous_attention_mask = attention_mask.int()
        return attention_mask

    def given_to(self, rows: int) -> Any:
        """HuggingFace's cache for one run.

        Raises:
            InputError: another number of rows, or an earlier run that was interrupted.
        """
        batch, places = self.previous_attention_mask.shape
        if rows != batch:
            raise InputError(f"past_kv_cache was made for batch_size={batch}, not {rows}.")
        if self.kept.get_seq_length() != places:
            raise InputError(
                f"past_kv_cache has keys of {self.kept.get_seq_length()} positions and a mask of "
                f"{places}: a run with it was interrupted. Start with a new one."
            )
        return self._copied() if self.frozen else self.kept

    def _copied(self) -> Any:
        """The same keys and values, gradients too, in a cache that may grow."""
        other = type(self.kept)()
        for i, layer in enumerate(self.kept.layers):
            other.update(layer.keys, layer.values, i)
        return other
