"""Methods of `ActivationCache` that draw it."""

from collections.abc import Sequence

from lensbridge.cache.attention import Patterns, plot_attention
from lensbridge.cache.tree import Named, tree_of
from lensbridge.points.names import Name
from lensbridge.viz import AttentionView


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
        positions: slice | Sequence[int] | None = None,
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
            positions: which queries and keys to show; None for all.
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
        texts = {"tokens": tokens, "key_tokens": key_tokens}
        return plot_attention(self, layer, head, batch, positions=positions, title=title, **texts)
