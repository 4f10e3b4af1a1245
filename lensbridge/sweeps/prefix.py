"""Prefix: keys and values of the unpatched run, which patches of later positions do not change."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.rows import same

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class Prefix:
    """Keys and values of every layer, for every position but the last.

    Args:
        layers: for each layer its keys and values.

    Shapes: `[batch, kv_head, pos - 1, d_head]`.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    def cache(self, length: int, copies: int, running: range) -> "DynamicCache":
        """A key/value cache of the first positions, for copies of the batch.

        Args:
            length: how many positions.
            copies: how many copies.
            running: the layers that will read it; in the others only the length matters.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for i, (keys, values) in enumerate(self.layers):
            count = copies if i in running else 1
            own = (_copied(one, length, count) for one in (keys, values))
            cache.layers.append(_layer(*own))
        return cache


def lengthen(cache: "DynamicCache", layer: int) -> None:
    """Make earlier layers as long as one that has grown: masks are made for the first layer."""
    grown: Any = cache.layers[layer]
    for other in cache.layers[:layer]:
        other.keys, other.values = grown.keys[:1], grown.values[:1]
        other.is_initialized = True


def _copied(stored: Tensor, length: int, copies: int) -> Tensor:
    """The first positions, for copies of the batch; views if it has one example."""
    first = stored[:, :, :length]
    if copies == 1:
        return first
    return first.unsqueeze(0).expand(copies, *first.shape).flatten(0, 1)


def _layer(keys: Tensor, values: Tensor) -> Any:
    from transformers.cache_utils import DynamicLayer

    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def prefix_of(base: BaseRun) -> "Prefix | str":
    """The prefix of a base run, or why it cannot be reused.

    The model is run without the last position. If the other logits stay as they were, no position
    sees later ones, and these keys and values are those of the whole run.
    """
    from transformers import DynamicCache

    tokens, mask = base.cache.tokens, base.cache.attention_mask
    assert tokens is not None
    if tokens.shape[1] < 2:
        return "the input has one position only"
    cache: Any = DynamicCache()
    try:
        logits = base.model(
            tokens[:, :-1],
            attention_mask=None if mask is None else mask[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
    except Exception as error:  # whatever a native model raises with a cache that is not its own
        return f"the model takes no plain key/value cache ({type(error).__name__}: {error})"
    if not same(logits, base.logits[:, :-1]):
        return "earlier positions see later ones"
    layers = tuple((one.keys, one.values) for one in cache.layers if one.is_initialized)
    shape = (tokens.shape[0], tokens.shape[1] - 1)
    fits = all((t.shape[0], t.shape[-2]) == shape and t.ndim == 4 for two in layers for t in two)
    if len(layers) != len(base.model.native.blocks) or not fits:
        return "not every layer keeps keys and values"
    return Prefix(layers)
