"""Causal tracing: noise on the subject, then one state restored at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prompts import is_text
from lensbridge.interventions.spans import token_span
from lensbridge.interventions.tracer import Tracer
from lensbridge.sweeps.options import MAX_BATCH_TOKENS
from lensbridge.tensors.position_forms import TokenMask, as_positions
from lensbridge.viz import Drawn, Heatmap, Scale
from lensbridge.viz.heatmap import Digits

SITES = ("resid_post", "mlp_out", "attn_out")
"""The states that are restored by default."""


@dataclass(frozen=True, eq=False, repr=False)
class CausalTrace(Drawn):
    """How much of the answer's probability each restored state brings back.

    Args:
        samples: by site, the probability of the answer with the state of a layer and position
            restored; NaN if the layer lacks the point.
        clean: probability of the answer in the clean run.
        corrupted: probability with noise on the subject, for each sample.
        answer: token of the answer.
        tokens: of the prompt, as text.
        subject: the positions that have noise.
        window: how many layers are restored together, by site.
        partial: whether the trace was interrupted; samples that were not run are NaN.
        engine: whether runs started at the restored layer, and if not, why.

    Shapes: `samples[site]` is `[layer, pos, sample]`, `corrupted` `[sample]`.
    Units: probabilities.
    """

    samples: Mapping[str, Tensor]
    clean: float
    corrupted: Tensor
    answer: int
    tokens: tuple[str, ...]
    subject: tuple[int, ...]
    window: Mapping[str, int]
    partial: bool = False
    engine: str = ""

    @property
    def effects(self) -> dict[str, Tensor]:
        """The indirect effects: restored minus corrupted, the mean of the samples.

        Shapes: `[layer, pos]` by site.
        """
        return {site: self[site] for site in self.samples}

    def __getitem__(self, site: str) -> Tensor:
        return (self.samples[site] - self.corrupted).mean(-1)

    def stderr(self, site: str) -> Tensor:
        """Standard error of the effects over the samples. Shapes: `[layer, pos]`"""
        found = self.samples[site] - self.corrupted
        return found.std(-1) / found.shape[-1] ** 0.5

    @property
    def total_effect(self) -> float:
        """How much the noise lowers the probability: clean minus corrupted."""
        return self.clean - float(self.corrupted.mean())

    def __repr__(self) -> str:
        partial = ", partial" if self.partial else ""
        return (
            f"CausalTrace(answer {self.answer}: {self.clean:.3g} clean, "
            f"{float(self.corrupted.mean()):.3g} with noise on {len(self.subject)} of "
            f"{len(self.tokens)} tokens; {', '.join(self.samples)}{partial})"
        )

    def _layers(self, site: str) -> str:
        """For a title, how many layers are restored together."""
        return f" of {self.window[site]} layers" if self.window[site] > 1 else ""

    def plot(self, site: str | None = None, digits: Digits = "auto") -> Heatmap:
        """The effects at a site (None: the first) as a heatmap. A star marks the subject."""
        site = next(iter(self.samples)) if site is None else site
        values = [
            [None if one != one else float(one) for one in row] for row in self[site].tolist()
        ]
        names = [text + ("*" if i in self.subject else "") for i, text in enumerate(self.tokens)]
        return Heatmap(
            f"Restoring {site}{self._layers(site)}",
            values,
            [str(layer) for layer in range(len(values))],
            names,
            Scale.around_zero(values, unit="probability"),
            axes=("layer", "position"),
            digits=digits,
        )


@torch.no_grad()
def causal_trace(
    model: HookedModel,
    prompt: Any,
    subject: str | Sequence[int],
    answer: str | int | None = None,
    noise: float = 3.0,
    samples: int = 10,
    sites: str | Sequence[str] | None = None,
    window: int = 10,
    *,
    seed: int = 0,
    std: float | None = None,
    position: int = -1,
    prepend_bos: bool | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> CausalTrace:
    """Causal tracing: find the states that carry what a model knows about a subject.

    The embeddings of the subject get Gaussian noise. Then, for each layer and position, the clean
    state is restored there in one run, and the probability of the answer is read. Ctrl-C ends the
    trace with what was run.

    Args:
        model: the model.
        prompt: one text, or its ids.
        subject: the part of the text that gets noise, or its positions.
        answer: a token; None: the likeliest one of the clean run.
        noise: standard deviation of the noise, in units of that of the embeddings.
        samples: how many draws of the noise; each cell has the same ones.
        sites: short names of the states that are restored; None: those of "resid_post", "mlp_out"
            and "attn_out" that the model has.
        window: how many layers around each one are restored together; for residual streams it is 1.
        seed: the noise is `noise * std * torch.randn(samples, subject, d)` with a CPU generator of
            this seed, where d is the width of the embeddings.
        std: standard deviation of the embeddings; None: of all entries of the embedding matrix.
        position: where the answer is read.
        prepend_bos: BOS before the text; None means the default.
        max_batch_tokens: how many positions a batch may have in all.

    Raises:
        InputError: there are several prompts, the prompt does not have the subject exactly once, or
            the model is an encoder-decoder.

    Source: causal tracing as in Meng et al. 2022 (ROME).

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> trace = causal_trace(model, "The Eiffel Tower is in the city of", "Eiffel Tower")
        >>> trace["resid_post"].shape
        torch.Size([4, 9])
    """
    if samples < 1 or window < 1:
        raise InputError(f"samples and window are at least 1, not {samples} and {window}.")
    if noise < 0 or (std is not None and std < 0):
        raise InputError(f"noise and std are 0 or more, not {noise} and {std}.")
    ids = _ids(model, prompt, prepend_bos)
    sites = _sites(model, sites)
    where = _places(model, ids[0].tolist(), subject)
    (position,) = _columns([position], ids.shape[1], "position")
    tracer = Tracer.of(model, ids, position, max_batch_tokens, sites)
    tracer.draw(where, samples, noise, std, seed)
    target = tracer.target(answer)
    widths = {site: 1 if site.startswith("resid") else window for site in sites}
    corrupted = tracer.corrupted(target)
    found = {site: tracer.trace(site, widths[site], target) for site in sites}
    return CausalTrace(
        samples=found,
        clean=float(tracer.clean[target]),
        corrupted=corrupted,
        answer=target,
        tokens=_texts(model, ids[0].tolist()),
        subject=tracer.subject,
        window=widths,
        partial=tracer.partial,
        engine=tracer.engine,
    )


def _ids(model: HookedModel, prompt: Any, prepend_bos: bool | None) -> Tensor:
    """Shapes: `[1, pos]`"""
    if model.native.is_encoder_decoder:
        raise InputError("causal_trace is for models with one stack, not for encoder-decoders.")
    if is_text(prompt):
        ids = model.to_tokens(prompt, prepend_bos=prepend_bos)
    else:
        ids = torch.as_tensor(prompt, device=model.device)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != 1:
        raise InputError(f"causal_trace takes one prompt; got ids of shape {tuple(ids.shape)}.")
    return ids


def _places(model: HookedModel, ids: list[int], subject: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(subject, str):
        return tuple(token_span(model, ids, subject))
    if not len(subject):
        raise InputError("subject is empty: name the positions that get noise.")
    found = as_positions(subject, "subject")
    if isinstance(found, TokenMask):
        found.check(1, len(ids), None, "subject")
        return found.rows[0]
    return _columns(found if isinstance(found, tuple) else (found,), len(ids), "subject: position")


def _columns(given: Sequence[int], count: int, what: str) -> tuple[int, ...]:
    for one in given:
        if not -count <= one < count:
            raise InputError(f"{what} {one} is out of range; there are {count} positions.")
    return tuple(int(one) % count for one in given)


def _texts(model: HookedModel, ids: list[int]) -> tuple[str, ...]:
    if model.tokens.tokenizer is None:
        return tuple(str(one) for one in ids)
    return tuple(model.to_single_str_token(one) for one in ids)


def _sites(model: HookedModel, asked: str | Sequence[str] | None) -> list[str]:
    """The sites that were asked for, or those of the default ones that the model has."""
    if asked is not None:
        found = [asked] if isinstance(asked, str) else list(asked)
    else:
        front, names = f"{model.native.main.prefix}.", model.vocabulary.names
        inside = [name for name in names if name.startswith(front)]
        found = [one for one in SITES if any(name.endswith(f".hook_{one}") for name in inside)]
    if not found:
        raise InputError(
            f"There are no sites to restore. Name some; {', '.join(SITES)} are the usual ones."
        )
    return found
