"""The residual stream of one run, decomposed down to heads and neurons.

`terms.py` lists what is added and what the stream goes through; this module computes the values.
Every term is followed to the target through the norms in between, with the divisors that the run
used, so the terms sum to the target on every architecture.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

import torch
from einops import einsum
from torch import Tensor

from lensbridge.cache.residual.embeddings import Embeddings
from lensbridge.cache.residual.norm_map import NormMap, Route
from lensbridge.cache.residual.rounding import ROUNDINGS, unit
from lensbridge.cache.residual.target import Target
from lensbridge.cache.residual.terms import (
    Mark,
    Step,
    Term,
    Through,
    Times,
    residual_terms,
)
from lensbridge.errors import AbsentPointError, LensbridgeError, NotCachedError
from lensbridge.native.linear import fetch
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import AttentionPart, MLPPart, StackPart
from lensbridge.points.point_names import PointNames
from lensbridge.tensors.layouts import per_head_out
from lensbridge.tensors.slices import PosSlice, RowColumns, taken

Routed: TypeAlias = tuple[list[tuple[Term, Route]], tuple[NormMap, ...]]


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
        (written, maps), embeddings = self._of_layers, self._embeddings.steps()
        return [*self._routed(embeddings, maps)[0], *written]

    @property
    def _embeddings(self) -> Embeddings:
        return Embeddings(self.values, self._has, self.stack, self.front, self.from_ids)

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
        allowed = ROUNDINGS * unit(terms.dtype) * sizes.amax(-1, keepdim=True)
        if bool((off > allowed).any()):
            raise LensbridgeError(
                f"The {len(terms)} terms do not sum to {self.target.point}: they are off by "
                f"{float(off.max()):.3g}. Either the stream or one of its terms was edited in this "
                "run, or the description of the architecture leaves something out."
            )

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
