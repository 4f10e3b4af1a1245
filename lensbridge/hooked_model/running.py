"""One pass of a model with callbacks: what it is given, and the logits and loss that it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias, overload

from torch import Tensor

from lensbridge.errors import InputError, LensbridgeError
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.forward import run_forward
from lensbridge.hooks.loss import Loss
from lensbridge.hooks.reach import last_layer
from lensbridge.hooks.span import Span
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.prompts import Side
from lensbridge.opened_model import OpenedModel
from lensbridge.plans.methods import PlanMethods
from lensbridge.tensors.loss import lm_cross_entropy_loss

OneTensor: TypeAlias = Literal["logits", "loss"]
ReturnType: TypeAlias = Literal["logits", "loss", "both"] | None
"""What a run returns; None returns nothing and computes no logits."""

Result: TypeAlias = "Tensor | LogitsAndLoss | None"
"""What a run returns: logits, a loss, both, a residual stream (`stop_at_layer`), or None."""


class LogitsAndLoss(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


class RunMethods(PlanMethods, OpenedModel):
    """Runs of a model."""

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

    def loss_fn(
        self,
        logits: Tensor,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Next-token cross-entropy; see `lensbridge.loss.lm_cross_entropy_loss`."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    def _run_block(self, layer: int, resid: Tensor) -> Tensor:
        return self.forward(resid, start_at_layer=layer, stop_at_layer=layer + 1)
