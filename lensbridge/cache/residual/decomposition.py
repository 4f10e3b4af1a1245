"""The residual stream of one run, decomposed down to heads and neurons.

`terms.py` lists what is added and what the stream goes through; this module computes the values.
Every term is followed to the target through the norms in between, with the divisors that the run
used, so the terms sum to the target on every architecture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

import torch
from einops import einsum
from torch import Tensor

from lensbridge.cache.residual.norm_map import NormMap, Route
from lensbridge.cache.residual.terms import (
    Mark,
    Step,
    Term,
    Through,
    Times,
    norm_bias,
    residual_terms,
)
from lensbridge.errors import AbsentPointError, InputError, LensbridgeError, NotCachedError
from lensbridge.native.linear import fetch
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import AttentionPart, BlockPart, MLPPart, StackPart
from lensbridge.points.point_names import PointNames
from lensbridge.tensors.layouts import per_head_out
from lensbridge.tensors.slices import PosSlice, RowColumns, taken

_ROUNDINGS = 32
"""The error of a sum that counts as rounding, in units of rounding at the size of its terms."""


Routed: TypeAlias = tuple[list[tuple[Term, Route]], tuple[NormMap, ...]]


@dataclass(frozen=True)
class Target:
    """A place in the stream: the point, and the norm through which the next part reads it."""

    point: str
    norm: Norm | None
    scale: str

    @classmethod
    def of(
        cls, stack: StackPart, front: str, names: PointNames, layer: int | None, mlp_input: bool
    ) -> "Target":
        """The input of layer `layer`; for None, -1 or the number of layers, the last output.

        Raises:
            InputError: there is no such layer.
        """
        count = len(stack.blocks)
        layer = count if layer is None or layer == -1 else layer
        if not 0 <= layer <= count or (mlp_input and layer == count):
            raise InputError(
                f"layer={layer}, mlp_input={mlp_input}: {stack.prefix} has {count} layers. Pass 0 "
                f"to {count - 1} for the input of a layer, or {count} (None, -1) without mlp_input "
                "for the output of the last."
            )
        if layer == count:
            last = f"{stack.prefix}.{count - 1}.hook_resid_post"
            return cls(last, stack.ln_final, f"{front}ln_final.hook_scale")
        return cls._inside(f"{stack.prefix}.{layer}.", stack.blocks[layer], names, mlp_input)

    @classmethod
    def _inside(cls, at: str, part: BlockPart, names: PointNames, mlp_input: bool) -> "Target":
        marks = ["hook_resid_mid_cross", "hook_resid_mid"] if mlp_input else []
        point = next((one for one in marks if at + one in names.index), "hook_resid_pre")
        slot, norm = ("ln2", part.ln2) if mlp_input else ("ln1", part.ln1)
        if f"{at}{slot}.hook_scale" not in names.index:  # one norm for both branches is ln1
            slot = "ln1"
        reads_it_as_it_is = part.residual in (None, "post_norm")
        return cls(at + point, None if reads_it_as_it_is else norm, f"{at}{slot}.hook_scale")


class Decomposition:
    """The stream at a target, as a sum.

    Args:
        values: the activations by full name.
        names: the names of the model.
        stack: the stack of the stream.
        front: the beginning of the names outside its layers.
        target: the place in the stream that is the sum.
        pos: which columns; an int removes the axis.
        normed: whether the terms go through the norm that reads the target, without its bias.
        directions: `[d_model, direction]` to project the terms onto, or None for whole vectors.
        from_ids: whether the run embedded ids. Embeddings that were the input are not at
            `hook_embed`, so they are what the stream has beside the positions.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        names: PointNames,
        stack: StackPart,
        front: str,
        target: Target,
        pos: PosSlice | RowColumns = None,
        normed: bool = False,
        directions: Tensor | None = None,
        from_ids: bool = True,
    ) -> None:
        self.values = values
        self.from_ids = from_ids
        self.names = names
        self.stack = stack
        self.front = front
        self.target = target
        self.pos = pos
        self.directions = directions
        self._last = self._reading() if normed else ()
        letters = stack.residual_axes.split()
        self._pos_axis = letters.index("p") - len(letters)

    def _reading(self) -> tuple[NormMap, ...]:
        norm = self.target.norm
        return () if norm is None else (self._norm_map(norm, self.target.scale),)

    def _norm_map(self, norm: Norm, scale: str) -> NormMap:
        return NormMap.of(norm, self._at(scale))

    def _at(self, name: str, axis: int = -2) -> Tensor:
        return taken(self.values[name], self.pos, axis)

    def _has(self, name: str) -> bool:
        return name in self.names.index

    # --- the terms ---------------------------------------------------------------------------

    @cached_property
    def terms(self) -> list[tuple[Term, Route]]:
        """Every term with its route to the target, in the order of the stream."""
        (written, maps), embeddings = self._of_layers, self._embeddings()
        return [*self._routed(embeddings, maps)[0], *written]

    @property
    def written(self) -> list[tuple[Term, Route]]:
        """The terms that layers write: `terms` without the embeddings, which may be missing."""
        return self._of_layers[0]

    @cached_property
    def _of_layers(self) -> Routed:
        steps = residual_terms(self.stack, self._has)
        return self._routed(steps[: steps.index(Mark(self.target.point))], self._last)

    def _routed(self, steps: Sequence[Step], maps: tuple[NormMap, ...]) -> Routed:
        """The terms with their routes through the later steps, and the route through all steps."""
        found: list[tuple[Term, Route]] = []
        for step in reversed(steps):
            if isinstance(step, Term):
                found.append((step, Route(maps)))
            elif isinstance(step, Through):
                maps = (self._norm_map(step.norm, step.scale), *maps)
            elif isinstance(step, Times):
                maps = (*self._multiplied(step.scale), *maps)
        return found[::-1], maps

    def whole(self, term: Term, route: Route) -> Tensor:
        """A term at the target.

        Shapes: `[..., pos, d_model or direction]`
        """
        return route.read(self._value(term), self.directions)

    def wholes(self, terms: Sequence[tuple[Term, Route]]) -> Tensor:
        """Terms at the target; terms with the same route are computed together.

        Shapes: `[term, ..., pos, d_model or direction]`
        """
        groups: list[Tensor] = []
        for _, alike in groupby(terms, key=lambda one: id(one[1].maps)):
            several = list(alike)
            values = torch.stack([self._value(term) for term, _ in several])
            groups.append(several[0][1].read(values, self.directions))
        return groups[0] if len(groups) == 1 else self.stacked(groups)

    def _value(self, term: Term) -> Tensor:
        if term.kind == "block":
            before, after = f"{term.point}hook_resid_pre", f"{term.point}hook_resid_post"
            return self._at(after, self._pos_axis) - self._at(before, self._pos_axis)
        if term.kind == "between":
            assert term.layer is not None
            before = f"{self.stack.prefix}.{term.layer - 1}.hook_resid_post"
            begins = self._at(f"{term.point}hook_resid_pre", self._pos_axis)
            return begins - self._at(before, self._pos_axis)
        if term.value is None:
            value = self._at(term.point, self._pos_axis)
            return value.expand_as(self._stream) if self.target.point in self.values else value
        if term.value.ndim == 1:
            return term.value.to(self._stream).expand_as(self._stream)
        return taken(term.value, self.pos, self._pos_axis)

    @cached_property
    def _stream(self) -> Tensor:
        return self._at(self.target.point, self._pos_axis)

    @property
    def total(self) -> Tensor:
        """What the terms should sum to."""
        return Route(self._last).read(self._stream, self.directions)

    def stacked(self, groups: list[Tensor]) -> Tensor:
        """Groups of rows as one stack; with no groups, a stack of none."""
        return torch.cat(groups) if groups else self.total.new_zeros(0, *self.total.shape)

    def check(self, terms: Tensor) -> None:
        """Require that a stack of all terms sums to the stream.

        Raises:
            LensbridgeError: it does not.
        """
        wanted = self.total
        off = (terms.sum(0) - wanted).abs()
        sizes = terms.abs().sum(0) + wanted.abs()
        allowed = _ROUNDINGS * _unit(terms.dtype) * sizes.amax(-1, keepdim=True)
        if bool((off > allowed).any()):
            raise LensbridgeError(
                f"The {len(terms)} terms do not sum to {self.target.point}: they are off by "
                f"{float(off.max()):.3g}. Either the stream or one of its terms was edited in this "
                "run, or the description of the architecture leaves something out."
            )

    # --- what the embeddings write -----------------------------------------------------------

    def _embeddings(self) -> list[Step]:
        stream = self.values[f"{self.stack.prefix}.0.hook_resid_pre"]
        was_input = not self.from_ids and f"{self.front}hook_embed" not in self.values
        embed = None if was_input else self._embedding("hook_embed", stream)
        norm, at = self.stack.ln_embed, f"{self.front}ln_embed."
        normed = norm is not None and self._has(f"{at}hook_scale")
        projected = normed and self.values[f"{at}hook_out"].shape != stream.shape
        if embed is None and (not was_input or projected):
            return [Term("embed", "embed", "", value=stream)]
        pos = self._embedding("hook_pos_embed", stream)
        embed = self._without(pos, f"{at}hook_" if normed else "") if embed is None else embed
        given = {"embed": embed} if pos is None else {"embed": embed, "pos_embed": pos}
        if norm is None or not normed:
            return [*_given(given), *self._rest("embed_rest", stream, given)]
        out = self.values[f"{at}hook_out"]
        after = {} if _is_rounding(stream - out, stream) else {"pos_embed": given.pop("pos_embed")}
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
        before = _is_rounding(stream - self.values[f"{norm}out"], stream)
        return read if pos is None or not before else read - pos

    def _embedding(self, point: str, stream: Tensor) -> Tensor | None:
        name = f"{self.front}{point}"
        if not self._has(name):
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
        if not _is_rounding(rest, whole):
            yield Term(label, "embed", "", value=rest)

    # --- heads and neurons -------------------------------------------------------------------

    def heads(self, term: Term, route: Route) -> Tensor:
        """What each head writes.

        Shapes: `[head, ..., pos, d_model or direction]`

        Raises:
            NotCachedError: z is gated before the output projection, and `hook_result` is missing.
        """
        attn, at = self._attention(term)
        result = f"{at}hook_result"
        if result in self.values:
            given = self._at(result, -3).movedim(-2, 0)
            return route.read(given, self.directions)
        if attn.gated:
            raise NotCachedError(
                "In this architecture z is gated before the output projection, so what heads add "
                f"cannot be computed from {at}hook_z. Keep {result} too, by naming it."
            )
        z, out = self._at(f"{at}hook_z", -3), attn.out.weight().detach()
        matrix = per_head_out(out, attn.n_heads).to(z)
        through = route.after(self._own(term))
        if self.directions is None:
            writes = einsum(z, matrix, "... h d, h d m -> h ... m")
            return through.forward(writes)
        read = matrix @ through.back(self.directions.to(z))
        return (einsum(z, read, "... h d, h d k -> h ... k") / through.divisor).to(z.dtype)

    def _attention(self, term: Term) -> tuple[AttentionPart, str]:
        part = term.part
        assert part is not None
        attn = part.cross if term.kind == "cross" else part.attn
        where = "cross_attn." if term.kind == "cross" else "attn."
        at = term.point.removesuffix("hook_cross_attn_out").removesuffix("hook_attn_out")
        if attn is None:
            raise AbsentPointError(f"Layer {term.layer} has no attention that is described.")
        return attn, f"{at}{where}"

    def neurons(self, term: Term, route: Route, chosen: PosSlice = None) -> Tensor:
        """What each neuron writes.

        Shapes: `[neuron, ..., pos, d_model or direction]`
        """
        part, acts = self.activations(term)
        matrix = part.down.weight().detach().to(acts)
        acts, matrix = taken(acts, chosen, -1), taken(matrix, chosen, -2)
        return route.after(self._own(term)).write(acts, matrix, self.directions)

    def activations(self, term: Term) -> tuple[MLPPart, Tensor]:
        """The MLP of a term, and what its down projection reads at the chosen positions.

        Raises:
            AbsentPointError: the neurons of the layer's MLP cannot be read one by one.
        """
        assert term.part is not None
        mlp, at = term.part.mlp, term.point.removesuffix("hook_mlp_out")
        if not isinstance(mlp, MLPPart):
            raise AbsentPointError(
                f"Layer {term.layer}: the neurons of {type(mlp).__name__.removesuffix('Part')} "
                "cannot be read one by one. Pass expand_neurons=False, or use hook_mlp_out."
            )
        if not mlp.writes_neurons:
            raise AbsentPointError(
                f"Layer {term.layer}: a gate multiplies what all neurons write together, channel "
                "by channel. Pass expand_neurons=False, or use hook_mlp_out."
            )
        acts = self._at(f"{at}mlp.hook_post")
        if mlp.inner_norm is not None:
            with torch.set_grad_enabled(acts.requires_grad):
                acts = mlp.inner_norm.forward(acts)
        return mlp, acts

    def bias(self, term: Term, route: Route) -> Tensor:
        """What a branch writes in addition to its heads or neurons: its biases.

        Shapes: `[..., pos, d_model or direction]`
        """
        assert term.part is not None
        part = term.part.mlp if term.kind == "mlp" else self._attention(term)[0]
        assert isinstance(part, MLPPart | AttentionPart)
        linear = part.down if isinstance(part, MLPPart) else part.out
        own = self._own(term)
        through = Route(own).forward(
            linear.bias().detach().to(self._stream).expand_as(self._stream)
        )
        if part.post_norm is not None:
            shift = Route(own[1:]).forward(part.post_norm.bias().detach().to(self._stream))
            through = through + shift
        if part.writer.bias is not None:
            through = through + fetch(*part.writer.bias).detach().to(self._stream)
        return route.read(through, self.directions)

    def _own(self, term: Term) -> tuple[NormMap, ...]:
        """The maps of a branch's output before it is added."""
        assert term.part is not None
        slot = {"attn": "ln1_post", "cross": "ln_cross_post", "mlp": "ln2_post"}[term.kind]
        part = term.part.mlp if term.kind == "mlp" else self._attention(term)[0]
        assert isinstance(part, MLPPart | AttentionPart)
        at, _, _ = term.point.rpartition("hook_")
        own = () if part.writer.scale.is_one else self._multiplied(part.writer.scale)
        if part.post_norm is None:
            return own
        return (self._norm_map(part.post_norm, f"{at}{slot}.hook_scale"), *own)

    def _multiplied(self, scale: Multiplier) -> tuple[NormMap, ...]:
        value = scale.value(self._stream)
        return (NormMap(gain=value.detach() if isinstance(value, Tensor) else value),)


def _given(values: Mapping[str, Tensor]) -> Iterator[Term]:
    for label, value in values.items():
        yield Term(label, "embed", "", value=value)


def _is_rounding(rest: Tensor, whole: Tensor) -> bool:
    return bool(rest.abs().max() <= _ROUNDINGS * _unit(whole.dtype) * whole.abs().max())


def _unit(dtype: torch.dtype) -> float:
    """The unit of rounding; at least that of float32, in which many norms compute."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
