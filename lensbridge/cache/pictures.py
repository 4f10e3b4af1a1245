"""Methods of `ActivationCache` that draw it."""

from collections.abc import Sequence
from dataclasses import replace

from lensbridge.cache.attention import (
    Patterns,
    example_of,
    heads_of,
    is_scores,
    kept_positions,
    pattern_name,
    texts_of,
    title_of,
)
from lensbridge.cache.tree import Named, tree_of
from lensbridge.points.names import Name
from lensbridge.tensors.slices import PosSlice
from lensbridge.viz import AttentionView, attention


class PictureMethods:
    """Methods of `ActivationCache` for pictures."""

    def _repr_html_(self: Named) -> str:
        """What a notebook shows: the names as a tree, with shapes, dtypes and bytes."""
        return tree_of(self).fragment()

    def plot_attention(
        self: Patterns,
        layer: int | Name,
        head: int | Sequence[int] | None = None,
        batch: int = 0,
        *,
        positions: PosSlice = None,
        tokens: Sequence[str] | None = None,
        key_tokens: Sequence[str] | None = None,
        title: str = "",
    ) -> AttentionView:
        """Where the heads of a layer attend, as a grid and over the text. Padding is left out.

        Args:
            layer: a layer, or the name of a pattern or of scores, in any spelling
                ("encoder.0.attn.hook_pattern").
            head: one head or several; None for all.
            batch: the example.
            positions: which queries and keys to show: an int, a slice, a list or a mask of bools;
                None for all.
            tokens: the text of each query, where it should not be the input's.
            key_tokens: the text of each key, likewise.
            title: written above it; if empty, the layer.

        Raises:
            NotCachedError: the run did not keep it.
            InputError: no such head, example or position, or more than 64 heads or 256 tokens.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> _, cache = model.run_with_cache("The Eiffel Tower is in the city of")
            >>> cache.plot_attention(1)
            AttentionView('Attention, layer 1', [head 4, query 9, key 9])
        """
        name = pattern_name(self, layer)
        pattern = example_of(self, name, batch)
        heads, counts = heads_of(head, pattern.shape[0]), pattern.shape[1:]
        queries, keys = texts_of(self, name, batch, counts, (tokens, key_tokens))
        rows, columns = kept_positions(self, name, batch, positions, counts)
        drawn = attention(
            pattern[heads][:, rows][:, :, columns],
            [queries[i] for i in rows],
            [keys[i] for i in columns],
            heads=heads,
            title=title or title_of(name),
            unit="score" if is_scores(name) else "attention",
        )
        return replace(drawn, places=(rows, columns))
