"""One forward pass: from which layer to which, with which callbacks, for which outputs."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lensbridge.errors import HookError, InputError
from lensbridge.hooks.attachment import STAYING, Attachment
from lensbridge.hooks.callbacks import Callback, require_fired
from lensbridge.hooks.engine import Engine, StopForward
from lensbridge.hooks.skip import layers_skipped
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.fsdp import finished, resuming
from lensbridge.native.parts import BlockPart, ResolvedModel
from lensbridge.points.names import is_before_layers, layer_of
from lensbridge.sites.site import Call, Chain, Stage


@dataclass(frozen=True)
class Span:
    """Which part of the model runs: layers `start` to `stop`, and whether the head does.

    `start` None: from the tokens. `stop` None: through to the head. `enough`: the run gives
    nothing, and nobody looks behind this layer.
    """

    start: int | None = None
    stop: int | None = None
    head: bool = True
    enough: BlockPart | None = None

    @classmethod
    def of(cls, start: int | None, stop: int | None, n_layers: int, head: bool) -> "Span":
        """A span from what a user wrote; negative layers count from the end.

        Raises:
            InputError: there is no such layer, or nothing between the two.
        """
        first = None if start is None else _layer("start_at_layer", start, n_layers)
        last = None if stop is None else _layer("stop_at_layer", stop, n_layers)
        if last is not None and first is not None and last <= first:
            raise InputError(f"start_at_layer={start} leaves nothing before stop_at_layer={stop}.")
        return cls(first, last, head)

    def misses(self, name: str) -> bool:
        """Whether a point lies before what runs."""
        if self.start is None:
            return False
        layer = layer_of(name)
        if layer is None:
            return is_before_layers(name)
        return layer < self.start

    def __str__(self) -> str:
        begin = "the tokens" if self.start is None else f"layer {self.start}"
        end = "the head" if self.stop is None else f"before layer {self.stop}"
        end = end if self.enough is None else f"{self.enough.path}, behind which nobody looks"
        return f" It ran from {begin} to {end}."


def _layer(what: str, layer: int, n_layers: int) -> int:
    positive = layer + n_layers if layer < 0 else layer
    if not 0 <= positive <= n_layers:
        raise InputError(f"{what}={layer}: this model has {n_layers} layers.")
    return positive


@dataclass(frozen=True)
class Outcome:
    """What a pass gave: the native output, or the residual where it was stopped."""

    native: Any
    residual: Tensor | None


def run_forward(
    engine: Engine,
    native: ResolvedModel,
    prepared: Prepared,
    span: Span,
    callbacks: list[Callback],
) -> Outcome:
    """Run the native model over a span of its layers.

    Raises:
        HookNeverFiredError: a required callback's point was not passed.
        HookError: hooks and gradient checkpointing at once.
    """
    kwargs = dict(prepared.kwargs)
    if prepared.tokens is not None:
        kwargs["input_ids"] = prepared.tokens
    elif prepared.embeds is not None and native.calling.embeds:
        given = prepared.embeds
        kwargs["inputs_embeds"] = given if span.start is None else _stand_in(native, given)
    elif prepared.embeds is not None:
        kwargs["input_ids"] = _stand_in_ids(native, prepared.embeds, span)
    stages = _span_stages(native, prepared, span)
    if engine.is_idle and not callbacks and not stages:
        return _call(engine, native, None, kwargs)
    _refuse_checkpointing(native)
    if native.towers and (span.start is not None or span.stop is not None):
        _refuse_span_of(native)
    here = engine.in_force()
    if here is not None and not callbacks and not stages:
        here.state.progress.step = -1
        return _call(engine, native, here, kwargs)
    if span.start is not None and native.main_input == "input_ids" and not native.calling.is_plain:
        kwargs.setdefault("use_cache", prepared.cache is not None)
    with ExitStack() as stack:
        stack.enter_context(layers_skipped(native.blocks[: span.start or 0]))
        attached = engine.attached(callbacks, stages, span.misses, for_run=True)
        attachment = stack.enter_context(attached)
        outcome = _call(engine, native, attachment, kwargs)
    _refuse_skipped_ends(native, span, stages)
    require_fired(callbacks, str(span))
    if span.start is None and span.stop is None and not attachment.alone:
        require_fired(engine.permanent, STAYING)
    return outcome


def _call(
    engine: Engine, native: ResolvedModel, attachment: Attachment | None, kwargs: dict[str, Any]
) -> Outcome:
    if attachment is not None:
        attachment.count_run()
    with resuming(native.root):
        try:
            with engine.run():
                return Outcome(native.call(kwargs), None)
        except StopForward as stop:
            value = None if stop.value is None else native.main.turned(stop.value)
            return Outcome(None, finished(native.root, value))
        except (ValueError, RuntimeError) as error:
            finished(native.root, None)
            _explain(error, native, kwargs)
            raise
        except BaseException:
            finished(native.root, None)
            raise


def _explain(error: Exception, native: ResolvedModel, kwargs: dict[str, Any]) -> None:
    """Say what a model asks for where its own error does not.

    Some encoder-decoders say only that they miss ids, although the encoder has its own. Gemma 4
    looks embeddings up in its table, to compute from their ids what its layers read; BLT cuts ids
    into patches.
    """
    needs_ids = ("exact `inputs_embeds`", "input_ids is required")
    if "input_ids" not in kwargs and any(words in str(error) for words in needs_ids):
        raise InputError(
            f"{type(native.core).__name__} needs the ids: its layers read more of them than "
            "their embeddings. Run it on tokens, without start_at_layer."
        ) from error
    if isinstance(error, RuntimeError):
        return
    asks = re.search(r"input_ids\b.* or \w*inputs_embeds", str(error))
    if asks and not {"decoder_input_ids", "decoder_inputs_embeds"} & kwargs.keys():
        raise InputError(
            "This model's decoder needs an input of its own: pass decoder_input_ids=[batch, pos], "
            "which begins with hf_model.config.decoder_start_token_id."
        ) from error


def _span_stages(native: ResolvedModel, prepared: Prepared, span: Span) -> list[Stage]:
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


def _refuse_skipped_ends(native: ResolvedModel, span: Span, stages: Sequence[Stage]) -> None:
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


def _stand_in(native: ResolvedModel, residual: Tensor) -> Tensor:
    """Embeddings for a run whose layers will not read them: models write into theirs (CTRL), and
    theirs may have another width than the stream (ELECTRA).
    """
    table = None if native.main.embed is None else native.main.embed._parameters.get("weight")
    width = residual.shape[-1] if table is None else table.shape[-1]
    return residual.new_zeros(*residual.shape[:-1], width)


def _stand_in_ids(native: ResolvedModel, residual: Tensor, span: Span) -> Tensor:
    """Ids for a run whose layers read a residual, in a model that takes no embeddings."""
    if span.start is None:
        raise InputError(
            f"{type(native.core).__name__} takes no embeddings: its forward has no argument "
            "inputs_embeds. Pass ids, and edit 'hook_embed' in a hook."
        )
    return residual.new_zeros(residual.shape[:2], dtype=torch.long)


def _entrance(native: ResolvedModel, layer: int, residual: Tensor) -> Stage:
    """Where a residual comes in: before a layer, or in the place of what the last one leaves."""
    _refuse_start(native, layer)
    residual = native.main.turned(residual)
    if layer < len(native.blocks):
        block = native.blocks[layer]
        replacing = _replacing_input if block.members is None else _overwriting_input
        return Stage(block.entrance, "input", -50, replacing(residual))
    return Stage(native.blocks[-1].exit, "output", -50, _replacing_result(residual))


def _refuse_span_of(native: ResolvedModel) -> None:
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
            f"start_at_layer={layer}: how attention of {kind} makes queries, keys and values is not "
            "described, so layers may read more of earlier ones than the stream. Start at 0, or "
            "after the last layer."
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


def _refuse_checkpointing(native: ResolvedModel) -> None:
    training = native.core.training and torch.is_grad_enabled()
    if training and any(module.gradient_checkpointing for module in native.checkpointers):
        raise HookError(
            "Gradient checkpointing runs the layers again on the way back, without the hooks, so "
            "edits would be lost. Switch checkpointing off on hf_model, or call .eval()."
        )
