"""What the embeddings write to the residual stream, as terms of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.cache.residual.rounding import is_rounding
from lensbridge.cache.residual.terms import Step, Term, Through, norm_bias
from lensbridge.native.parts import StackPart


@dataclass(frozen=True)
class Embeddings:
    """The stream before the first layer, as a sum.

    Args:
        values: the activations by full name.
        has: whether the model has a point.
        stack: the stack of the stream.
        front: the beginning of the names outside its layers.
        from_ids: whether the run embedded ids. Embeddings that were the input are not at
            `hook_embed`, so they are what the stream has beside the positions.
    """

    values: Mapping[str, Tensor]
    has: Callable[[str], bool]
    stack: StackPart
    front: str
    from_ids: bool

    def steps(self) -> list[Step]:
        """The terms before the layers, and the norm that they go through."""
        stream = self.values[f"{self.stack.prefix}.0.hook_resid_pre"]
        was_input = not self.from_ids and f"{self.front}hook_embed" not in self.values
        embed = None if was_input else self._embedding("hook_embed", stream)
        norm, at = self.stack.ln_embed, f"{self.front}ln_embed."
        normed = norm is not None and self.has(f"{at}hook_scale")
        projected = normed and self.values[f"{at}hook_out"].shape != stream.shape
        if embed is None and (not was_input or projected):
            return [Term("embed", "embed", "", value=stream)]
        pos = self._embedding("hook_pos_embed", stream)
        embed = self._without(pos, f"{at}hook_" if normed else "") if embed is None else embed
        given = {"embed": embed} if pos is None else {"embed": embed, "pos_embed": pos}
        if norm is None or not normed:
            return [*_given(given), *self._rest("embed_rest", stream, given)]
        out = self.values[f"{at}hook_out"]
        after = {} if is_rounding(stream - out, stream) else {"pos_embed": given.pop("pos_embed")}
        read = self.values[f"{at}hook_normalized"] * self.values[f"{at}hook_scale"]
        return [
            *_given(given),
            *self._rest("embed_rest", read.to(stream.dtype), given, norm.kind == "LN"),
            Through(norm, f"{at}hook_scale"),
            *norm_bias("ln_embed_bias", norm, None),
            *_given(after),
            *self._rest("embed_rest_post", stream, {"ln_embed": out, **after}),
        ]

    def _without(self, pos: Tensor | None, norm: str) -> Tensor:
        """The input of the first layer, or of the norm before it, without learned positions.

        Args:
            pos: these positions.
            norm: the beginning of the names of the norm's points; "" where there is none.
        """
        stream = self.values[f"{self.stack.prefix}.0.hook_resid_pre"]
        if not norm:
            return stream if pos is None else stream - pos
        read = (self.values[f"{norm}normalized"] * self.values[f"{norm}scale"]).to(stream.dtype)
        before = is_rounding(stream - self.values[f"{norm}out"], stream)
        return read if pos is None or not before else read - pos

    def _embedding(self, point: str, stream: Tensor) -> Tensor | None:
        name = f"{self.front}{point}"
        if not self.has(name):
            return None
        value = self.values[name]
        if value.shape[-2:] != stream.shape[-2:] or value.ndim != stream.ndim:
            return None  # patches without the class token, several streams, another width
        return value.expand_as(stream)

    def _rest(
        self, label: str, whole: Tensor, parts: Mapping[str, Tensor], centred: bool = False
    ) -> Iterator[Term]:
        """The rest of a sum, unless it is zero: token types, computed positions, images."""
        rest = whole - torch.stack(list(parts.values())).sum(0)
        rest = rest - rest.mean(-1, keepdim=True) if centred else rest
        if not is_rounding(rest, whole):
            yield Term(label, "embed", "", value=rest)


def _given(values: Mapping[str, Tensor]) -> Iterator[Term]:
    for label, value in values.items():
        yield Term(label, "embed", "", value=value)
