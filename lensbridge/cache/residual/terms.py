"""The residual stream of one stack as a list of steps: what is added, and what it goes through.

`residual_terms` gives the steps in the order of the data flow. All code that decomposes the stream
reads them, so only this module treats post-norm, parallel, multiplied and hybrid models specially.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from lensbridge.native.multiplier import Constant, Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import BlockPart, StackPart

Kind = Literal["embed", "attn", "cross", "mixer", "mlp", "per_layer", "block", "between", "bias"]
"""What wrote a term: `block` is a layer whose inside is not described, `between` what the model
changes between two layers, `bias` a norm's bias, or
what a layer adds beside its branches."""


@dataclass(frozen=True)
class Term:
    """Something that is added to the stream.

    Args:
        label: its name in a decomposition, such as `3_attn_out`.
        kind: what wrote it.
        point: the point with its value. For a block whose inside is not described, the prefix of
            its names; for what is between layers, that of the later one; for a bias, its label.
        layer: None for what the embeddings write.
        part: the layer.
        value: the value itself, if it is not that of a point.
    """

    label: str
    kind: Kind
    point: str
    layer: int | None = None
    part: BlockPart | None = None
    value: Tensor | None = None

    @property
    def is_point(self) -> bool:
        """Whether its value is that of one point."""
        return self.value is None and self.kind not in ("block", "between")


@dataclass(frozen=True)
class Through:
    """The whole stream goes through a norm, whose divisor is the point `scale`."""

    norm: Norm
    scale: str


@dataclass(frozen=True)
class Times:
    """The whole stream is multiplied, by a number or by a parameter or buffer."""

    scale: Multiplier


@dataclass(frozen=True)
class Mark:
    """At this step, the stream is the value of a point."""

    point: str


Step: TypeAlias = Term | Through | Times | Mark


def residual_terms(stack: StackPart, has: Callable[[str], bool]) -> list[Step]:
    """The steps of every layer, without what the embeddings write before them.

    Args:
        stack: the stack.
        has: whether the model has a point of that full name.
    """
    steps: list[Step] = []
    for i, part in enumerate(stack.blocks):
        layer = _LayerSteps(i, f"{stack.prefix}.{i}.", part, has)
        if part.begins_anew:
            steps.append(Term(f"{i}_between", "between", layer.at, i, part))
        steps += [Mark(f"{layer.at}hook_resid_pre"), *layer.steps()]
    last = f"{stack.prefix}.{len(stack.blocks) - 1}."
    return [*steps, Mark(f"{last}hook_resid_post")]


@dataclass(frozen=True)
class _LayerSteps:
    """The steps of one layer."""

    i: int
    at: str
    part: BlockPart
    has: Callable[[str], bool]

    def steps(self) -> Iterator[Step]:
        if self.part.residual is None:
            yield Term(f"{self.i}_block_out", "block", self.at, self.i, self.part)
        elif self.part.residual == "post_norm":
            yield from self._summed_then_normed()
        else:
            yield from self._added()

    def _added(self) -> Iterator[Step]:
        part = self.part
        if part.skip_norm:
            yield from self._through("ln1", part.ln1)
        before_attn, before_mlp = part.skip_scales
        with_attn, with_mlp = part.sum_biases
        yield from self._times(before_attn)
        yield from self._branches()
        yield from self._constant("attn", with_attn)
        yield from self._mark("hook_resid_mid")
        yield from self._term("cross", "hook_cross_attn_out")
        yield from self._mark("hook_resid_mid_cross")
        if part.skip_norm and part.residual == "sequential":
            yield from self._through("ln2", part.ln2)
        yield from self._times(before_mlp)
        yield from self._term("mlp", "hook_mlp_out")
        yield from self._term("per_layer", "hook_per_layer_out")
        yield from self._constant("mlp", with_mlp)
        if part.out_scale is not None:
            yield Times(Multiplier(held=(part.out_scale,)))

    def _summed_then_normed(self) -> Iterator[Step]:
        before_attn, before_mlp = self.part.skip_scales
        with_attn, with_mlp = self.part.sum_biases
        yield from self._times(before_attn)
        yield from self._branches()
        yield from self._constant("attn", with_attn)
        yield from self._through("ln1", self.part.ln1)
        yield from self._mark("hook_resid_mid")
        yield from self._term("cross", "hook_cross_attn_out")
        yield from self._through("ln_cross", self.part.norms.get("ln_cross"))
        yield from self._mark("hook_resid_mid_cross")
        yield from self._times(before_mlp)
        yield from self._term("mlp", "hook_mlp_out")
        yield from self._constant("mlp", with_mlp)
        yield from self._through("ln2", self.part.ln2)

    def _branches(self) -> Iterator[Step]:
        yield from self._term("attn", "hook_attn_out")
        yield from self._term("mixer", "hook_mixer_out")

    def _term(self, kind: Kind, point: str) -> Iterator[Step]:
        if self.has(self.at + point):
            label = f"{self.i}_{point.removeprefix('hook_')}"
            yield Term(label, kind, self.at + point, self.i, self.part)

    def _times(self, scale: Multiplier) -> Iterator[Step]:
        if not scale.is_one:
            yield Times(scale)

    def _constant(self, branch: str, constant: Constant) -> Iterator[Step]:
        if not constant.is_zero:
            label = f"{self.i}_{branch}_sum_bias"
            yield Term(label, "bias", label, self.i, value=constant.tensor.detach())

    def _mark(self, point: str) -> Iterator[Step]:
        if self.has(self.at + point):
            yield Mark(self.at + point)

    def _through(self, slot: str, norm: Norm | None) -> Iterator[Step]:
        if norm is None or not self.has(f"{self.at}{slot}.hook_scale"):
            return
        yield Through(norm, f"{self.at}{slot}.hook_scale")
        yield from norm_bias(f"{self.i}_{slot}_bias", norm, self.i)


def norm_bias(label: str, norm: Norm, layer: int | None) -> Iterator[Term]:
    """The bias that a norm adds to the stream, where it has one."""
    if norm.holder._parameters.get(norm.bias_name) is not None:
        yield Term(label, "bias", label, layer, value=norm.bias().detach())
