"""One layer: the modules that a `Block` names, each in its role."""

from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from typing import Any

from torch import nn

from lensbridge.errors import ArchitectureMismatchError
from lensbridge.native.multiplier import Constant, Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    FeedForward,
    MixerPart,
    NormSlot,
    Writer,
)
from lensbridge.native.resolve.attention import AttentionResolver
from lensbridge.native.resolve.feed_forward import FeedForwardResolver
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.resolve.layers import Layer
from lensbridge.spec import Attention, Block, Mixer, Norms, Stack

_MOST = 5
"""How many reasons a message lists."""


class BlockResolver:
    """The layers of one stack."""

    def __init__(self, finder: Finder, spec: Stack) -> None:
        self.finder = finder
        self.variants = spec.block if isinstance(spec.block, tuple) else (spec.block,)
        self.d_model = finder.size(spec.dims.d_model)
        self.dims = spec.dims
        self.feed_forward = FeedForwardResolver(finder)

    def block(self, layer: Layer, index: int, repeat: int, repeats: int) -> BlockPart:
        """A layer, read with the first variant that fits it."""
        refusals = []
        for place, variant in enumerate(self.variants):
            try:
                part = self._block(layer, variant, index, repeat if repeats > 1 else None)
                return replace(part, variant=place)
            except ArchitectureMismatchError as error:
                refusals.append(error)
        if len(refusals) == 1:
            raise refusals[0]
        raise self.finder.mismatch(
            f"layer {index} fits none of the {len(refusals)} blocks described:\n"
            + "\n".join(f"  {error}" for error in refusals[:_MOST])
            + (f"\n  and {len(refusals) - _MOST} more" if len(refusals) > _MOST else "")
        )

    def _block(self, found: Layer, spec: Block, index: int, repeat: int | None) -> BlockPart:
        layer, where = found.module, f"block {index}"
        self._expect_no_writing(spec, where)
        norms = self._norms(layer, spec, where)

        def attention(part: Attention | None, after: Norm | None, crossing: bool) -> Any:
            if part is None:
                return None
            writer = self._writer(layer, part, after, where, index)
            writer = replace(writer, bias=self.finder.held(layer, part.out_bias))
            return self._attention(index).part(layer, part, writer, after, where, crossing)

        return BlockPart(
            module=layer,
            path=found.path,
            members=found.members,
            pair=self._pair(layer, where) if spec.residual == "reversible" else None,
            norms=norms,
            attn=attention(spec.attn, norms.get("ln1_post"), False),
            cross=attention(spec.cross, norms.get("ln_cross_post"), True),
            mixer=self._mixer(layer, spec, norms.get("ln1_post"), where, index),
            mlp=self._feed_forward(layer, spec, norms.get("ln2_post"), where, index),
            per_layer=None
            if spec.per_layer is None
            else self.finder.find(layer, spec.per_layer, where),
            residual=None if spec.residual == "reversible" else spec.residual,
            skip_norm=spec.skip_norm,
            flattens=spec.flattens,
            out_scale=None
            if spec.out_scale is None
            else self.finder.tensor(layer, spec.out_scale, where),
            skip_scales=self._skip_scales(layer, spec, where, index),
            sum_biases=self._sum_biases(layer, spec, where, index),
            repeat=repeat,
        )

    def _expect_no_writing(self, spec: Block, where: str) -> None:
        """Refuse words about how branches write to the stream, where `residual` does not say it."""
        words = list(words_of_writing(spec)) if spec.residual is None else []
        if words:
            raise self.finder.mismatch(
                f"{where}: residual=None leaves open how branches write to the stream, and "
                f"{', '.join(words)} speaks of that. Leave it out, or say residual."
            )

    def _pair(self, layer: nn.Module, where: str) -> tuple[str, str]:
        """The first two arguments of a reversible layer's forward."""
        names = list(signature(layer.forward).parameters)
        if len(names) < 2:
            raise self.finder.mismatch(
                f"{where}: a reversible layer takes two streams, and {type(layer).__name__} takes "
                f"{', '.join(names) or 'nothing'}."
            )
        return names[0], names[1]

    def _feed_forward(
        self, layer: nn.Module, block: Block, post_norm: Norm | None, where: str, index: int
    ) -> FeedForward | None:
        spec = block.mlp
        if spec is None:
            return None
        writer = self._writer(layer, spec, post_norm, where, index)
        return self.feed_forward.part(layer, spec, writer, post_norm, where, index)

    def _skip_scales(
        self, layer: nn.Module, spec: Block, where: str, index: int
    ) -> tuple[Multiplier, Multiplier]:
        scales = [None if one is None else one.skip_scale for one in (spec.mixer, spec.mlp)]
        if spec.attn is not None:
            scales[0] = spec.attn.skip_scale
        if scales[1] is not None and spec.residual == "parallel":
            raise self.finder.mismatch(
                f"{where}: with residual='parallel' the stream is multiplied once: give skip_scale "
                "to attention."
            )
        of_attn, of_mlp = (self.finder.multiplier(layer, one, where, index) for one in scales)
        return of_attn, of_mlp

    def _sum_biases(
        self, layer: nn.Module, spec: Block, where: str, index: int
    ) -> tuple[Constant, Constant]:
        of_attn, of_mlp = (
            self.finder.constant(layer, None if one is None else one.sum_bias, where, index)
            for one in (spec.attn or spec.mixer, spec.mlp)
        )
        return of_attn, of_mlp

    def _norms(self, layer: nn.Module, spec: Block, where: str) -> dict[NormSlot, Norm]:
        described = {word: self._norm(layer, spec.norms, word, where) for word in _SLOTS}
        slots = _SLOTS_OF_SUMS if spec.residual == "post_norm" else _SLOTS
        norms = {slot: described[word] for word, slot in slots.items()}
        return {slot: norm for slot, norm in norms.items() if norm is not None}

    def _norm(self, layer: nn.Module, spec: Norms, slot: str, where: str) -> Norm | None:
        path = getattr(spec, slot)
        if path is None:
            return None
        norm = self.finder.norm(self.finder.find(layer, path, where), spec, self.d_model, path)
        if norm.inner is not None and slot.startswith("post"):
            raise self.finder.mismatch(
                f"{where}: '{path}' has its norm inside ('{spec.inner}'), which is understood of "
                "norms before a branch only. Leave the norm out, and say written_by."
            )
        return norm

    def _writer(
        self, layer: nn.Module, spec: Any, post_norm: Norm | None, where: str, index: int
    ) -> Writer:
        scale = self.finder.multiplier(layer, spec.scale, where, index)
        written_by = spec.written_by
        if written_by is None and post_norm is not None:
            return Writer((post_norm.module,), scale)
        paths = written_by if isinstance(written_by, tuple) else (written_by or spec.path,)
        return Writer(tuple(self.finder.find(layer, path, where) for path in paths), scale)

    def _mixer(
        self, layer: nn.Module, block: Block, post_norm: Norm | None, where: str, index: int
    ) -> MixerPart | None:
        spec = block.mixer
        if spec is None:
            return None
        if block.attn is not None:
            post_norm = None  # beside attention, the norm is attention's
        module = self.finder.find(layer, spec.path, where)
        steps = {
            step.replace(".", "_"): self.finder.find(module, step, f"{where} mixer")
            for step in spec.steps
        }
        writer = self._writer(layer, spec, post_norm, where, index)
        feeder = self._feeder(layer, spec, where, index)
        return MixerPart(module, spec.path, steps, writer, spec.fed_more, feeder)

    def _attention(self, index: int) -> AttentionResolver:
        return AttentionResolver(self.finder, self.finder.dims_of(self.dims, index), self.d_model)

    def _feeder(
        self, layer: nn.Module, spec: Mixer, where: str, index: int
    ) -> AttentionPart | None:
        if spec.feeder is None:
            return None
        said = [word for word in _WRITING_OF_FEEDER if getattr(spec.feeder, word)]
        if said or not spec.fed_more:
            raise self.finder.mismatch(
                f"{where}: attention that feeds the mixer writes nothing to the stream: say "
                f"fed_more=True{''.join(f', and leave out {word}' for word in said)}."
            )
        module = self.finder.find(layer, spec.feeder.path, where)
        writer = Writer((module,), Multiplier())
        return self._attention(index).part(layer, spec.feeder, writer, None, where, False)


def words_of_writing(spec: Block) -> Iterator[str]:
    """The words of a block that say how its branches write to the stream."""
    for owner, part, words in (
        ("", spec, ("skip_norm", "cross", "per_layer", "out_scale")),
        ("norms.", spec.norms, ("post_attn", "post_cross", "post_mlp")),
        *((f"{one}.", getattr(spec, one), _WRITING) for one in ("attn", "mixer", "mlp")),
    ):
        yield from (f"{owner}{word}" for word in words if getattr(part, word, None))


_WRITING_OF_FEEDER = ("written_by", "scale", "skip_scale", "out_bias", "sum_bias")

_WRITING = ("scale", "skip_scale", "sum_bias", "out_bias")

_SLOTS: dict[str, NormSlot] = {
    "pre_attn": "ln1",
    "post_attn": "ln1_post",
    "pre_cross": "ln_cross",
    "post_cross": "ln_cross_post",
    "pre_mlp": "ln2",
    "post_mlp": "ln2_post",
}
_SLOTS_OF_SUMS: dict[str, NormSlot] = {
    "post_attn": "ln1",
    "post_cross": "ln_cross",
    "post_mlp": "ln2",
}
