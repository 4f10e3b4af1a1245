"""The loss of a run: the model's own of `labels`, or how badly the input's next tokens are told."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lensbridge.errors import InputError, TokenError
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.tokens import as_tensor
from lensbridge.native.parts import ResolvedModel
from lensbridge.sites.composed import LogitsSite
from lensbridge.sites.site import Site
from lensbridge.tensors.loss import lm_cross_entropy_loss

__all__ = ["Loss"]

_IGNORED = -100
_OTHER_TARGETS = ("start_positions", "end_positions", "next_sentence_label", "sentence_order_label")


@dataclass(frozen=True)
class Loss:
    """What the loss of one run is computed against.

    Args:
        native: the model.
        labels: for the native forward, which computes the loss of them.
        ids: the ids that logits are compared with, one position later, where there are no labels.
        mask: of `ids`; padding is not counted.
        of_logits: whether a loss of labels is computed here, from logits that the native loss does
            not see.
    """

    native: ResolvedModel
    labels: Tensor | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    of_logits: bool = False

    @classmethod
    def of(
        cls, native: ResolvedModel, prepared: Prepared, labels: Any, ids: Any, wanted: bool
    ) -> "Loss":
        """What an input has a loss against, checked before the model runs.

        Args:
            native: the model.
            prepared: the input.
            labels: what the user wants the native loss of, or None.
            ids: what stands for the input's own ids, or None.
            wanted: whether the run is to give a loss.

        Raises:
            InputError: there is nothing to compare the logits with, or labels that do not fit.
            TokenError: labels outside the vocabulary.
        """
        if labels is not None:
            given = _checked_labels(native, prepared, labels)
            if native.label_kind is not None:
                return cls(native, given)
            if wanted and not native.predicts_next:
                raise InputError(
                    f"{type(native.core).__name__} computes no loss from labels. Take the logits, "
                    "and compute the loss from them."
                )
            return cls(native, ids=given)
        if not wanted or any(prepared.kwargs.get(name) is not None for name in _OTHER_TARGETS):
            return cls(native)
        if native.predicts_next:
            return _of_input(native, prepared, ids)
        return _of_decoder(native, prepared)

    def given(self, prepared: Prepared) -> Prepared:
        """The input with the labels that the native forward takes."""
        if self.labels is None:
            return prepared
        return replace(prepared, kwargs={**prepared.kwargs, "labels": self.labels})

    def after_hooks(self, logits: Site) -> "Loss":
        """For a run whose hooks change the logits: not the native loss if it comes before them."""
        return replace(self, of_logits=isinstance(logits, LogitsSite))

    def result(self, output: Any, logits: Tensor, per_token: bool) -> Tensor:
        """The loss of a run.

        Args:
            output: what the native forward returned.
            logits: of the run.
            per_token: return the loss of each label or pair instead of the mean.

        Raises:
            InputError: the model gave no loss, or one that is no mean over labels.
        """
        if self.ids is not None:
            return lm_cross_entropy_loss(logits, self.ids, self.mask, per_token)
        if self.of_logits and self.labels is not None:
            losses, counted = _by_label(logits, self.labels, self.native.predicts_next)
            return losses if per_token else losses.sum() / counted
        loss = output.get("loss")
        if loss is None:
            raise InputError(
                f"{type(self.native.core).__name__} computed no loss from what it was given. Pass "
                "every target that its forward needs for one, as next_sentence_label beside labels."
            )
        return self._taken_apart(loss, logits) if per_token else loss

    def _taken_apart(self, loss: Tensor, logits: Tensor) -> Tensor:
        """The native loss label by label: in the way of counting whose mean it is."""
        if self.labels is not None and not self.labels.is_floating_point():
            for shifted in (self.native.predicts_next, not self.native.predicts_next):
                losses, counted = _by_label(logits, self.labels, shifted)
                if _same(losses.sum() / counted, loss):
                    return losses
        raise InputError(
            f"The loss of {type(self.native.core).__name__} is not the mean of one loss for each "
            "label, so loss_per_token=True cannot take it apart. Take return_type='logits', and "
            "compute what you need from them."
        )


def _of_input(native: ResolvedModel, prepared: Prepared, ids: Any) -> Loss:
    tokens = prepared.tokens if ids is None else as_tensor(ids)
    if tokens is None:
        raise InputError(
            "A loss needs the ids of the tokens: with embeddings or a residual pass tokens=[batch, "
            "pos] for the loss of predicting them, or labels=..., as hf_model takes them."
        )
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    mask = None if prepared.mask is None or prepared.mask.ndim != 2 else prepared.mask
    return Loss(native, ids=tokens, mask=None if mask is None else mask[:, -tokens.shape[1] :])


def _of_decoder(native: ResolvedModel, prepared: Prepared) -> Loss:
    """Of an encoder-decoder: its decoder predicts the next of the decoder's own ids."""
    head, ids = native.unembed, prepared.kwargs.get("decoder_input_ids")
    generates = native.is_encoder_decoder and head is not None and native.logits_axes == "b p v"
    if generates and head is not None and head.n_out >= native.sizes.d_vocab and ids is not None:
        return Loss(native, ids=ids, mask=prepared.kwargs.get("decoder_attention_mask"))
    name = type(native.core).__name__
    why = "has a decoder with an input of its own" if generates else "does not predict the next"
    why += "" if generates else " token of its input"
    raise InputError(
        f"{name} {why}, so this input alone has no loss. Pass labels=..., as hf_model takes them "
        "(-100 is not counted), or take return_type='logits'."
    )


def _checked_labels(native: ResolvedModel, prepared: Prepared, given: Any) -> Tensor:
    """Labels as a tensor beside the input.

    Raises:
        InputError: they are not of the input's shape, or not every position has logits.
        TokenError: they are outside the vocabulary.
    """
    labels, whole = as_tensor(given), prepared.tokens
    whole = prepared.embeds if whole is None else whole
    if whole is None:  # pictures or sounds
        return labels
    labels = labels.to(whole.device)
    if prepared.kwargs.get("logits_to_keep") is not None:
        raise InputError(
            "labels and logits_to_keep: a loss needs the logits of every position that it is "
            "computed over. Leave logits_to_keep out."
        )
    if native.label_kind in ("position", None):
        labels = labels[None] if labels.ndim == 1 else labels
        decoder = prepared.kwargs.get("decoder_input_ids") if native.is_encoder_decoder else whole
        wanted = (len(whole), labels.shape[-1] if decoder is None else decoder.shape[1])
    else:
        wanted = (len(whole), *labels.shape[1:])
    if tuple(labels.shape) != wanted:
        raise InputError(f"labels have shape {tuple(labels.shape)}; this input needs {wanted}.")
    return _in_range(native, labels)


def _in_range(native: ResolvedModel, labels: Tensor) -> Tensor:
    counted = labels[labels != _IGNORED]
    if labels.is_floating_point() or native.unembed is None or not counted.numel():
        return labels
    low, high = (int(end) for end in counted.aminmax())
    classes = native.unembed.n_out
    if classes > 1 and (low < 0 or high >= classes):
        raise TokenError(
            f"Labels run from {low} to {high}; this model's logits are for 0 to {classes - 1}, and "
            f"{_IGNORED} is not counted."
        )
    return labels


def _by_label(logits: Tensor, labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each label, 0 where it is not counted, and how many are.

    Shapes: `[..., class]`, `[...]` -> `[...]`; shifted `[batch, pos - 1]`.
    """
    labels = labels.to(logits.device).long()
    if logits.ndim == 2 and labels.ndim > 1:
        labels = labels.squeeze(-1)
    if shifted and logits.ndim == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:-1] != labels.shape:
        return logits.new_full((), torch.nan), logits.new_ones(())
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(
        wide.flatten(0, -2), labels.flatten(), ignore_index=_IGNORED, reduction="none"
    )
    return losses.view(labels.shape), (labels != _IGNORED).sum()


def _same(a: Tensor, b: Tensor) -> bool:
    precise = b.dtype in (torch.float32, torch.float64)
    return torch.allclose(
        a.double(), b.double(), rtol=1e-4 if precise else 2e-2, atol=1e-5, equal_nan=True
    )
