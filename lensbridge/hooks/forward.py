"""One forward pass over a span of layers, with callbacks."""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import HookError, InputError
from lensbridge.hooks.attachment import STAYING, Attachment
from lensbridge.hooks.callbacks import Callback, require_fired
from lensbridge.hooks.engine import Engine, StopForward
from lensbridge.hooks.skip import layers_skipped
from lensbridge.hooks.span import Span
from lensbridge.hooks.span_ends import refuse_skipped_ends, refuse_span_of, span_stages
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.fsdp import finished, resuming
from lensbridge.native.parts import ResolvedModel

BESIDE_TOKENS = {
    "pixel_values": "an image",
    "cross_attention_states": "the states of an image",
    "input_features": "sound",
}
"""Arguments beside tokens that some layers are for, and what they hold."""


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
    kwargs = _arguments(native, prepared, span)
    stages = span_stages(native, prepared, span)
    if engine.is_idle and not callbacks and not stages:
        return _call(engine, native, None, kwargs)
    _refuse_checkpointing(native)
    if native.towers and (span.start is not None or span.stop is not None):
        refuse_span_of(native)
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
    refuse_skipped_ends(native, span, stages)
    require_fired(callbacks, f"{span}{_not_given(native, prepared)}")
    if span.start is None and span.stop is None and not attachment.alone:
        require_fired(engine.permanent, STAYING)
    return outcome


def _not_given(native: ResolvedModel, prepared: Prepared) -> str:
    """A sentence on inputs beside tokens, such as an image, that some layers need to run."""
    if prepared.tokens is None:
        return ""
    accepted = signature(native.core.forward).parameters
    names = [name for name in BESIDE_TOKENS if name in accepted]
    if not names or any(prepared.kwargs.get(name) is not None for name in names):
        return ""
    told = " or ".join(f"{BESIDE_TOKENS[name]} ({name}=...)" for name in names)
    return f" It was not given {told}, without which the layers that read it do not run."


def _arguments(native: ResolvedModel, prepared: Prepared, span: Span) -> dict[str, Any]:
    """The keywords of the native forward; a residual comes in later, so something stands for it."""
    kwargs = dict(prepared.kwargs)
    if prepared.tokens is not None:
        kwargs["input_ids"] = prepared.tokens
    elif prepared.embeds is not None and native.calling.embeds:
        given = prepared.embeds
        kwargs["inputs_embeds"] = given if span.start is None else _stand_in(native, given)
    elif prepared.embeds is not None:
        kwargs["input_ids"] = _stand_in_ids(native, prepared.embeds, span)
    return kwargs


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


def _refuse_checkpointing(native: ResolvedModel) -> None:
    training = native.core.training and torch.is_grad_enabled()
    if training and any(module.gradient_checkpointing for module in native.checkpointers):
        raise HookError(
            "Gradient checkpointing runs the layers again on the way back, without the hooks, so "
            "edits would be lost. Switch checkpointing off on hf_model, or call .eval()."
        )
