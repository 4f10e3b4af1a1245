"""Where a span of layers begins and ends: what is done there, and which spans a model has not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooks.engine import StopForward
from lensbridge.hooks.span import Span
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.parts import BlockPart, ResolvedModel
from lensbridge.sites.call import Call, Chain, Stage


def span_stages(native: ResolvedModel, prepared: Prepared, span: Span) -> list[Stage]:
    """What is done where a span begins and ends.

    Raises:
        InputError: the model has no such span, or the input is no residual.
    """
    stages = []
    blocks = native.blocks
    if (span.start is not None or span.stop is not None) and blocks[0].pair is not None:
        raise InputError(
            f"Layers of {type(native.core).__name__} take and give two streams, so a run can "
            "neither start nor stop between them. Edit hook_resid_pre in a hook."
        )
    if span.start is not None:
        residual = prepared.embeds
        if residual is None:
            raise InputError("start_at_layer needs a residual [batch, pos, d_model] as its input.")
        stages.append(_entrance(native, span.start, residual))
    if span.stop is not None and span.stop < len(blocks):
        stages.append(Stage(blocks[span.stop].entrance, "input", -90, _stop_with_input))
    elif span.stop is not None:
        stages.append(Stage(blocks[-1].exit, "output", 90, _stop_with_result))
    elif span.enough is not None:
        stages.append(Stage(span.enough.exit, "output", 90, _stop))
    elif not span.head and native.unembed is not None:
        stages.append(Stage(native.unembed.module, "input", 90, _stop))
    ends = [span.stop] if span.start is None else [span.start, span.stop]
    return [
        stage._replace(act=_InItsCall(stage.act, _call_of(native, layer)))
        for stage, layer in zip(stages, ends, strict=False)
    ]


@dataclass
class _InItsCall:
    """What is done where a span begins or ends.

    Args:
        act: what is done.
        nth: in which call of the module; None: in every call.
        seen: how many calls there were.
    """

    act: Callable[[Call, Chain], None]
    nth: int | None
    seen: int = 0

    def __call__(self, call: Call, chain: Chain) -> None:
        here, self.seen = self.seen, self.seen + 1
        if self.nth in (None, here):
            self.act(call, chain)

    @property
    def done(self) -> bool:
        """Whether it was done in this pass."""
        return self.seen > (self.nth or 0)


def _call_of(native: ResolvedModel, layer: int | None) -> int | None:
    """Which call of its module a layer is, where layers share modules."""
    return None if layer is None else native.blocks[min(layer, len(native.blocks) - 1)].repeat


def refuse_skipped_ends(native: ResolvedModel, span: Span, stages: Sequence[Stage]) -> None:
    """Refuse a span that begins or ends at a layer which the model skips on this input.

    Raises:
        InputError: it does.
    """
    ends = {"start": (span.start, stages[:1]), "stop": (span.stop, stages[-1:])}
    for word, (layer, found) in ends.items():
        if layer is None or all(cast(_InItsCall, one.act).done for one in found):
            continue
        at = native.blocks[min(layer, len(native.blocks) - 1)]
        raise InputError(
            f"{word}_at_layer={layer}: the model skips this layer ({at.path}, "
            f"{type(at.module).__name__}) on this input. Name a layer that runs, or give the input "
            "that this one reads."
        )


def _entrance(native: ResolvedModel, layer: int, residual: Tensor) -> Stage:
    """Where a residual comes in: before a layer, or in the place of what the last one leaves."""
    _refuse_start(native, layer)
    residual = native.main.turned(residual)
    if layer < len(native.blocks):
        block = native.blocks[layer]
        replacing = _overwriting_input if block.is_entered_inside else _replacing_input
        return Stage(block.entrance, "input", -50, replacing(residual))
    return Stage(native.blocks[-1].exit, "output", -50, _replacing_result(residual))


def refuse_span_of(native: ResolvedModel) -> None:
    """Refuse a span of a model with several stacks.

    Raises:
        InputError: it is an encoder-decoder.
    """
    if native.is_encoder_decoder:
        raise InputError(
            "start_at_layer and stop_at_layer are for models with one stack; "
            f"{type(native.core).__name__} has an encoder and a decoder."
        )


def _refuse_start(native: ResolvedModel, layer: int) -> None:
    if layer >= len(native.blocks):
        return
    kind = type(native.core).__name__
    if any(_reads_embeddings(block) for block in native.blocks):
        raise InputError(
            f"start_at_layer={layer}: layers of {kind} read the embeddings beside the stream, so "
            "the stream alone does not tell what they compute. Start from the tokens."
        )
    if layer == 0:
        return
    if any(block.attn is not None and block.attn.q is None for block in native.blocks):
        raise InputError(
            f"start_at_layer={layer}: how attention of {kind} makes queries, keys and values is "
            "not described, so layers may read more of earlier ones than the stream. Start at 0, "
            "or after the last layer."
        )
    handed = _handed_on(native.blocks, layer)
    if handed:
        raise InputError(
            f"start_at_layer={layer}: earlier layers of {kind} compute {handed} that this layer or "
            "later ones read beside the stream. Start at 0, or after the last layer."
        )
    if any(block.repeat is not None for block in native.blocks):
        raise InputError(
            f"start_at_layer={layer}: the layers of {kind} share one module, so none can be "
            "skipped. Start at 0, or after the last."
        )


def _reads_embeddings(block: BlockPart) -> bool:
    fed_more = block.mixer is not None and block.mixer.fed_more
    return fed_more or block.per_layer is not None


def _handed_on(blocks: Sequence[BlockPart], layer: int) -> str:
    """What layers from one on take from earlier layers; nothing for most models."""
    later = [block.attn for block in blocks[layer:] if block.attn is not None]
    if any(attn.k is None or attn.v is None for attn in later):
        return "keys and values"
    first = blocks[0].attn
    biased = first is not None and first.position_bias is not None
    shared = biased and any(attn.position_bias is None for attn in later)
    return "the biases of positions" if shared else ""


def _replacing_input(residual: Tensor) -> Callable[[Call, Chain], None]:
    return lambda call, chain: call.replace_input(residual)


def _overwriting_input(residual: Tensor) -> Callable[[Call, Chain], None]:
    """The same where the skip connection reads the tensor outside the module too."""

    def overwrite(call: Call, chain: Chain) -> None:
        call.input.copy_(residual)

    return overwrite


def _replacing_result(residual: Tensor) -> Callable[[Call, Chain], None]:
    return lambda call, chain: call.replace_result(residual)


def _stop_with_input(call: Call, chain: Chain) -> None:
    raise StopForward(call.input)


def _stop_with_result(call: Call, chain: Chain) -> None:
    raise StopForward(call.result)


def _stop(call: Call, chain: Chain) -> None:
    raise StopForward(None)
