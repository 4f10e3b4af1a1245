"""HookedModel: a model that runs with hooks, caches, and shows its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.apart import refuse_apart
from lensbridge.cache.capture import Collector, Keep
from lensbridge.errors import (
    InputError,
    LensbridgeError,
)
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.forward import Span, run_forward
from lensbridge.hooks.loss import Loss
from lensbridge.hooks.methods import HookPair
from lensbridge.hooks.reach import last_layer
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.prompts import Side
from lensbridge.opened_model import OpenedModel
from lensbridge.plans.budget import require_room
from lensbridge.plans.methods import PlanMethods
from lensbridge.points.point_names import NamesFilter, names_points
from lensbridge.tensors.dtypes import dtype_of
from lensbridge.tensors.loss import lm_cross_entropy_loss
from lensbridge.tensors.positions import Count
from lensbridge.tensors.slices import PosSlice

if TYPE_CHECKING:
    pass

OneTensor: TypeAlias = Literal["logits", "loss"]
ReturnType: TypeAlias = Literal["logits", "loss", "both"] | None
"""What a run returns; None returns nothing and computes no logits."""

Result: TypeAlias = "Tensor | LogitsAndLoss | None"
"""What a run returns: logits, a loss, both, a residual stream (`stop_at_layer`), or None."""


class LogitsAndLoss(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


class HookedModel(PlanMethods, OpenedModel):
    """A HuggingFace model, not modified, with named activations and weights.

    This is what every tool of lensbridge works on; `LensModel` is this with the tools' methods.
    Tools call `prepare`, `run_callbacks`, `cache_of` and `listening`, from which the methods for
    users are made.

    Attributes:
        hf_model: the model itself, the very object.
        cfg: its sizes and choices under the field's names.
        tokens: its tokenizer with the rules for BOS and padding.
        native: its modules by what they do, as the description says.
        engine: attaches callbacks to it and takes them off.
        components: what `blocks`, `embed` and the other views of weights are made of.
        preparer: makes arguments of the native forward of an input.
    """

    # --- running -----------------------------------------------------------------------------

    @overload
    def forward(
        self, input: Any = None, return_type: OneTensor = "logits", **options: Any
    ) -> Tensor: ...
    @overload
    def forward(
        self, input: Any = None, *, return_type: Literal["both"], **options: Any
    ) -> LogitsAndLoss: ...
    @overload
    def forward(self, input: Any = None, *, return_type: None, **options: Any) -> Tensor | None: ...
    @overload
    def forward(
        self, input: Any, return_type: Literal["both"], **options: Any
    ) -> LogitsAndLoss: ...
    @overload
    def forward(self, input: Any, return_type: None, **options: Any) -> Tensor | None: ...
    def forward(
        self,
        input: Any = None,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_key_values: Any = None,
        labels: Any = None,
        tokens: Any = None,
        **hf: Any,
    ) -> Result:
        """Run the model.

        Args:
            input: text, the messages of a chat (`[{"role": ..., "content": ...}]`, which go through
                the tokenizer's chat template), a list of texts or of chats, ids `[pos]` or
                `[batch, pos]`, a tokenizer's output, or embeddings `[batch, pos, d_model]`; with
                `start_at_layer`, a residual stream.
            return_type: "logits", "loss", "both", or None to compute neither. A run with None ends
                after the last layer that a hook or a cache looks into.
            loss_per_token: the loss of each pair instead of the mean.
            prepend_bos: BOS before text; None means the default (True).
            padding_side: where short texts of a list are padded; None means right.
            attention_mask: 1 for tokens, 0 for padding; made here for lists of texts.
            position_ids: made here from the mask where the model has absolute positions.
            start_at_layer: skip the layers before it; `input` is what it reads.
            stop_at_layer: run the layers before it and return the residual stream there.
            past_key_values: a key/value cache to continue.
            labels: for the native forward: the loss is that of `hf_model(..., labels=labels)`,
                which does not count -100. Models that do not predict the next token of their input
                (masked ones, classifiers, encoder-decoders) have no loss without labels.
            tokens: the ids whose next ones the loss is of, where the input is a residual or
                embeddings.
            inputs_embeds: embeddings in the place of `input`.
            add_generation_prompt: whether a chat ends where the assistant's answer begins; None: it
                does unless the last message is the assistant's own.
            hf: for the native forward.

        Shapes: logits `[batch, pos, d_vocab]`; loss a scalar, or per token `[batch, pos - 1]`, of
            labels that the model does not shift `[batch, pos]` or `[batch]`; residual
            `[batch, pos, d_model]`.

        Raises:
            TypeError: a keyword that the model does not take.
            InputError: an input that cannot be run.
        """
        return self.run_callbacks(
            [],
            input,
            return_type,
            loss_per_token=loss_per_token,
            start_at_layer=start_at_layer,
            stop_at_layer=stop_at_layer,
            labels=labels,
            tokens=tokens,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **hf,
        )[0]

    __call__ = forward

    def prepare(self, input: Any, **options: Any) -> Prepared:
        """An input as the native forward takes it.

        Args:
            input: as in `forward`.
            options: `prepend_bos`, `padding_side`, `attention_mask`, `position_ids`,
                `past_key_values`, `inputs_embeds`, `add_generation_prompt` and other keywords of
                the native forward.

        Raises:
            TypeError: a keyword that the model does not take.
            InputError: an input that cannot be run.
        """
        self.follow()
        return self.preparer.prepare(input, **options)

    @overload
    def run_callbacks(
        self, callbacks: list[Callback], input: Any, return_type: OneTensor, **options: Any
    ) -> tuple[Tensor, Prepared]: ...
    @overload
    def run_callbacks(
        self, callbacks: list[Callback], input: Any, return_type: ReturnType, **options: Any
    ) -> tuple[Result, Prepared]: ...
    def run_callbacks(
        self,
        callbacks: list[Callback],
        input: Any,
        return_type: ReturnType,
        *,
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        labels: Any = None,
        tokens: Any = None,
        **prepare: Any,
    ) -> tuple[Result, Prepared]:
        """One pass with callbacks of the engine: what every kind of run is made of.

        Args:
            callbacks: what reads or edits activations in this run.
            input: as in `forward`, like the other arguments.
            return_type: as in `forward`.
            loss_per_token: as in `forward`.
            start_at_layer: as in `forward`.
            stop_at_layer: as in `forward`.
            labels: as in `forward`.
            tokens: as in `forward`.
            prepare: options of `prepare`.

        Returns:
            What `forward` returns, and the input as it was run.
        """
        self._check_return_type(return_type, stop_at_layer)
        prepared = self.prepare(input, **prepare)
        head = return_type is not None or self._listens("hook_logits", callbacks)
        span = Span.of(start_at_layer, stop_at_layer, self.native.sizes.n_layers, head)
        if return_type is None and span.stop is None:
            enough = last_layer(self.engine, self.native, prepared, callbacks, span.misses)
            span = replace(span, enough=enough)
        self.engine.check(prepared, callbacks, muted=span.misses)
        loss = self._loss(prepared, return_type if span.stop is None else None, labels, tokens)
        outcome = run_forward(self.engine, self.native, loss.given(prepared), span, callbacks)
        if span.stop is not None:
            return outcome.residual, prepared
        if any(one.name == "hook_logits" and one.kind != "read" for one in self._acting(callbacks)):
            loss = loss.after_hooks(self.engine.sites["hook_logits"])
        result = None if return_type is None else self.native.logits(outcome.native)
        if result is None or return_type == "logits":
            return result, prepared
        value = loss.result(outcome.native, result, loss_per_token)
        return LogitsAndLoss(result, value) if return_type == "both" else value, prepared

    def _check_return_type(self, return_type: ReturnType, stop_at_layer: int | None) -> None:
        if return_type not in ("logits", "loss", "both", None):
            raise InputError(
                f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}."
            )
        if return_type and stop_at_layer is None and not self.native.returns_logits:
            raise LensbridgeError(
                f"{type(self.native.core).__name__} has no language-model head, so there are no "
                "logits. Pass return_type=None, or load the causal-LM class."
            )

    def _loss(self, prepared: Prepared, return_type: ReturnType, labels: Any, tokens: Any) -> Loss:
        wanted = return_type in ("loss", "both")
        return Loss.of(self.native, prepared, labels, tokens, wanted)

    def _acting(self, callbacks: list[Callback]) -> list[Callback]:
        return [*self.engine.listening, *callbacks]

    def _listens(self, name: str, callbacks: list[Callback]) -> bool:
        return any(one.name == name for one in self._acting(callbacks))

    @overload
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: OneTensor = "logits",
        **options: Any,
    ) -> Tensor: ...
    @overload
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: Literal["both"],
        **options: Any,
    ) -> LogitsAndLoss: ...
    @overload
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: None,
        **options: Any,
    ) -> Tensor | None: ...
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        return_type: ReturnType = "logits",
        **forward: Any,
    ) -> Result:
        """Run the model with hooks on it for this run.

        Args:
            input: as in `forward`.
            fwd_hooks: `(name or filter, fn)` pairs; `fn(activation, hook)` gets a private copy and
                may edit it in place or return a new value.
            bwd_hooks: the same on gradients; they act when the user runs `backward`.
            reset_hooks_end: take the hooks off at the end; otherwise they stay until `reset_hooks`.
            clear_contexts: empty every `hook.ctx` at the end.
            return_type: as in `forward`.
            forward: other arguments of `forward`.

        Raises:
            HookNeverFiredError: a named point that the run did not pass.
            EditError: a returned value of another shape or dtype.
        """
        callbacks = self._callbacks(fwd_hooks, bwd_hooks)
        if reset_hooks_end:
            result, _ = self.run_callbacks(callbacks, input, return_type, **forward)
        else:
            self.engine.add(callbacks)
            result, _ = self.run_callbacks([], input, return_type, **forward)
        if clear_contexts:
            self.engine.contexts.clear()
        return result

    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: OneTensor = "logits",
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: Literal["both"],
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[LogitsAndLoss, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: None,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor | None, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: OneTensor = "logits",
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: Literal["both"],
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[LogitsAndLoss, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: None,
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[Tensor | None, dict[str, Tensor]]: ...
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        pos_slice: PosSlice = None,
        incl_bwd: bool = False,
        remove_batch_dim: bool = False,
        return_type: ReturnType = "logits",
        return_cache_object: bool = True,
        detach: bool = True,
        count: Count = "tokens",
        max_bytes: int | str | None = None,
        **forward: Any,
    ) -> tuple[Result, ActivationCache | dict[str, Tensor]]:
        """Run the model and keep activations.

        Args:
            input: as in `forward`.
            names_filter: what to keep: None (all but what comes only when named), a name, a short
                name, a glob, a callable on names, or a list of these.
            device: where to keep it.
            dtype: as what to keep it: a dtype or its name.
            pos_slice: which positions to keep, of the tokens of each text; -1 or "last" is its
                last token. The axis stays.
            incl_bwd: also run backward from the (scalar) result and keep gradients under
                `<name>_grad`; parameters' `.grad` stay as they are.
            remove_batch_dim: drop the batch axis of a batch of one.
            return_type: as in `forward`.
            return_cache_object: False gives a plain dictionary.
            detach: False keeps the activations in the autograd graph.
            count: "columns": `pos_slice` counts columns of the batch, padding included.
            max_bytes: the most that may be kept on one device that computes, such as "2GB". A run
                that would keep more is not run; the error says what fits. See `plan`.
            forward: other arguments of `forward`.

        Raises:
            UnknownPointError: a name or glob that matches nothing.
            HookNeverFiredError: a named point that the run did not pass.
            InputError: gradients of points that no one run can give; a position that a text lacks;
                more than `max_bytes`.
        """
        if max_bytes is not None:
            options = {
                "device": device,
                "dtype": dtype,
                "pos_slice": pos_slice,
                "incl_bwd": incl_bwd,
                "return_type": return_type,
                "detach": detach,
                "count": count,
            }
            planned = partial(self.plan, **{"names_filter": names_filter, **options, **forward})
            require_room(partial(planned, input), max_bytes, names_filter, options)
        names = self.vocabulary.select(names_filter)
        if incl_bwd:
            refuse_apart(names, self.engine.sites)
        keep = Keep(device, dtype_of(dtype), pos_slice, detach, count)
        collector = self.collector(names, keep)
        callbacks = collector.callbacks(names_points(names_filter), incl_bwd)
        # nobody could follow a graph to activations that are cut from it
        unused = return_type is None and detach and forward.get("stop_at_layer") is None
        grad = torch.no_grad() if unused and self.engine.is_idle else nullcontext()
        with torch.enable_grad() if incl_bwd else grad:
            result, prepared = self.run_callbacks(callbacks, input, return_type, **forward)
            if incl_bwd:
                collector.backward(_scalar(result))
        cache = self.cache_of(collector, prepared)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return result, cache if return_cache_object else dict(cache)

    def collector(self, names: Sequence[str], keep: Keep) -> Collector:
        """What keeps activations of a run.

        Args:
            names: canonical names of the points.
            keep: how they are kept.
        """
        return Collector(self.engine.sites, names, keep, self.native)

    def cache_of(self, collector: Collector, prepared: Prepared) -> ActivationCache:
        """What a collector kept of a run, as a cache that knows the input.

        Args:
            collector: whose callbacks were in the run.
            prepared: the input, from `run_callbacks`.
        """
        return ActivationCache(
            collector.tensors,
            self.vocabulary,
            model=self,
            tokens=prepared.tokens,
            attention_mask=prepared.mask,
            prepend_bos=prepared.prepend_bos,
            versions=collector.versions,
            decoder_attention_mask=prepared.kwargs.get("decoder_attention_mask"),
        )

    def loss_fn(
        self,
        logits: Tensor,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Next-token cross-entropy; see `lensbridge.loss.lm_cross_entropy_loss`."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    @property
    def processed_by(self) -> tuple[str, ...]:
        """The steps of weight processing that are in force."""
        return ()

    def _run_block(self, layer: int, resid: Tensor) -> Tensor:
        return self.forward(resid, start_at_layer=layer, stop_at_layer=layer + 1)


def _scalar(result: Result) -> Tensor:
    value = result.loss if isinstance(result, LogitsAndLoss) else result
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError("incl_bwd needs a scalar to run backward from: return_type='loss'.")
    return value
