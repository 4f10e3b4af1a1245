"""What two models compute on the same prompts: the residual stream, and the next token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.comparison.side import Side, check_tokenizers
from lensbridge.errors import InputError
from lensbridge.inputs.prepare import Prepared
from lensbridge.tensors.positions import padded

_MASKED = float("nan")


@dataclass(frozen=True)
class TokenChange:
    """A next token whose probability changed.

    Args:
        token: its text, or its id where there is no tokenizer.
        id: its id.
        a: its probability in a.
        b: its probability in b.
    """

    token: str
    id: int
    a: float
    b: float

    def __str__(self) -> str:
        return f"{self.token!r} {self.a:.1%} -> {self.b:.1%}"


@dataclass(frozen=True)
class OutputChange:
    """How the prediction at one position changed.

    Args:
        prompt: the number of the prompt.
        position: the column of its batch.
        token: the token there, after which the next one is predicted.
        kl: how far the predictions are apart.
        tokens: the tokens whose probability changed most.
    """

    prompt: int
    position: int
    token: str
    kl: float
    tokens: tuple[TokenChange, ...]


@dataclass(frozen=True, eq=False)
class PromptChanges:
    """What two models compute on the same prompts. Entries of padding are NaN.

    Args:
        labels: the rows of the stream: `0_pre`, then `0_post` to the last layer.
        cosine: the cosine of the two streams.
        relative: the norm of b's stream minus a's, over that of a's.
        kl: KL(a || b) of the next-token distributions; None for models without a head.
        ids: the tokens whose probability changed most at each position, the largest change first.
        probabilities: their probabilities in a and in b.
        tokens: the ids of the prompts.
        texts: the tokens of each prompt as text.
        names: the text of each id in `ids`.

    Shapes: cosine and relative `[row, prompt, pos]`, kl `[prompt, pos]`, ids `[prompt, pos, k]`,
        probabilities `[2, prompt, pos, k]`
    Units: kl in nats
    """

    labels: list[str]
    cosine: Tensor
    relative: Tensor
    kl: Tensor | None
    ids: Tensor | None
    probabilities: Tensor | None
    tokens: Tensor
    texts: list[list[str]]
    names: dict[int, str]

    @property
    def cosine_by_layer(self) -> Tensor:
        """The mean cosine over all tokens. Shapes: `[row]`"""
        return self.cosine.flatten(1).nanmean(1)

    @property
    def relative_by_layer(self) -> Tensor:
        """The mean relative difference over all tokens. Shapes: `[row]`"""
        return self.relative.flatten(1).nanmean(1)

    def changed(self, prompt: int = 0, position: int = -1) -> OutputChange:
        """How the prediction at one position changed.

        Args:
            prompt: the number of the prompt.
            position: which of its tokens; padding is not counted.

        Raises:
            InputError: no such prompt or position, or the models have no head.
        """
        kl = self._predictions()
        if not -len(kl) <= prompt < len(kl):
            raise InputError(f"There is no prompt {prompt}: there are {len(kl)}.")
        columns = (~kl[prompt].isnan()).nonzero().flatten().tolist()
        if not -len(columns) <= position < len(columns):
            raise InputError(
                f"There is no position {position}: prompt {prompt} has {len(columns)}."
            )
        return self._at(prompt % len(kl), columns[position])

    def most_changed(self, k: int = 10) -> list[OutputChange]:
        """The positions whose predictions are furthest apart, the furthest first.

        Raises:
            InputError: the models have no head.
        """
        kl = self._predictions()
        flat = kl.flatten().nan_to_num(-1.0)
        best = flat.topk(min(k, int((flat >= 0).sum()))).indices.tolist()
        return [self._at(*divmod(i, kl.shape[1])) for i in best]

    def _predictions(self) -> Tensor:
        if self.kl is None:
            raise InputError("These models have no language-model head, so they predict no token.")
        return self.kl

    def _at(self, prompt: int, column: int) -> OutputChange:
        assert self.kl is not None
        assert self.ids is not None
        assert self.probabilities is not None
        before, after = self.probabilities[:, prompt, column].tolist()
        found = zip(self.ids[prompt, column].tolist(), before, after, strict=True)
        tokens = tuple(TokenChange(self.names[i], i, p, q) for i, p, q in found)
        own = self.names[int(self.tokens[prompt, column])]
        return OutputChange(prompt, column, own, float(self.kl[prompt, column]), tokens)


def prompt_changes(
    a: Side, b: Side, prompts: Any, top_k: int, batch_size: int, prepend_bos: bool | None
) -> PromptChanges:
    """Run both models on prompts, some rows at a time.

    Raises:
        InputError: tokenizers that differ, or prompts that are no ids or text.
    """
    check_tokenizers(a.model, b.model)
    if a.model.native.is_encoder_decoder:
        raise InputError(
            "Prompts are run on models with one stack, not on encoder-decoders. Leave prompts out "
            "to compare the weights."
        )
    prepared = a.model.prepare(prompts, prepend_bos=prepend_bos)
    if prepared.tokens is None:
        raise InputError("Prompts are text, token ids, or objects that hold them.")
    parts = [_batch_changes(a, b, one, top_k) for one in _batches(prepared, batch_size)]
    joined = [torch.cat(found, dim=axis) for found, axis in _columns(parts)]
    cosine, relative, *predictions = joined
    kl, ids, probabilities = predictions or (None, None, None)
    tokens = prepared.tokens.cpu()
    known = tokens.unique().tolist() + ([] if ids is None else ids.unique().tolist())
    names = {i: _text(a, b, i) for i in dict.fromkeys(known)}
    real = ~cosine[0].isnan()
    rows = [row[kept].tolist() for row, kept in zip(tokens, real, strict=True)]
    texts = [[names[i] for i in row] for row in rows]
    labels = ["0_pre", *(f"{i}_post" for i in range(a.model.cfg.n_layers))]
    return PromptChanges(labels, cosine, relative, kl, ids, probabilities, tokens, texts, names)


def _columns(parts: list[tuple[Tensor, ...]]) -> Iterator[tuple[tuple[Tensor, ...], int]]:
    """What belongs together of all batches, and the axis of prompts in it."""
    axes = (1, 1, 0, 0, 1)
    for i, found in enumerate(zip(*parts, strict=True)):
        yield found, axes[i]


def _batches(prepared: Prepared, size: int) -> Iterator[dict[str, Tensor]]:
    assert prepared.tokens is not None
    for start in range(0, len(prepared.tokens), size):
        rows = slice(start, start + size)
        found = {"input_ids": prepared.tokens[rows]}
        if prepared.mask is not None:
            found["attention_mask"] = prepared.mask[rows]
        yield found


@torch.no_grad()
def _batch_changes(a: Side, b: Side, given: dict[str, Tensor], top_k: int) -> tuple[Tensor, ...]:
    names = _streams(a)
    runs = [_run(side, given, names) for side in (a, b)]
    real = padded(given.get("attention_mask"))
    (_, one), (_, other) = runs
    streams = [_compared(one[name], other[name], real) for name in names]
    cosine, relative = (torch.stack(found) for found in zip(*streams, strict=True))
    logits = [found for found, _ in runs]
    if logits[0] is None or logits[1] is None:
        return cosine, relative
    rows = [_predicted(one, other, top_k) for one, other in zip(*logits, strict=True)]
    kl, ids, before, after = (torch.stack(found) for found in zip(*rows, strict=True))
    if real is not None:
        kl = kl.masked_fill(~real.cpu(), _MASKED)
    return cosine, relative, kl, ids, torch.stack([before, after])


def _streams(side: Side) -> list[str]:
    main = side.model.native.main
    rest = [f"{main.prefix}.{i}.hook_resid_post" for i in range(len(main.blocks))]
    return [f"{main.prefix}.0.hook_resid_pre", *rest]


def _run(
    side: Side, given: dict[str, Tensor], names: list[str]
) -> tuple[Tensor | None, ActivationCache]:
    head = side.model.native.returns_logits
    with side.without():
        found: Any = side.model.run_with_cache(
            given, names_filter=names, return_type="logits" if head else None
        )
    logits, cache = found
    return logits, cache


def _compared(one: Tensor, other: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosine and relative difference of two streams. Shapes: each `[prompt, pos]`"""
    one = one.double()
    other = other.to(one.device).double()
    sizes = one.norm(dim=-1)
    cosine = F.cosine_similarity(one, other, dim=-1)
    relative = (other - one).norm(dim=-1) / sizes
    found = [value.cpu() for value in (cosine, relative)]
    if real is not None:
        found = [value.masked_fill(~real.cpu(), _MASKED) for value in found]
    return found[0], found[1]


def _predicted(one: Tensor, other: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL of each position, and the tokens whose probability changed most. Shapes: `[pos, ...]`"""
    both = min(one.shape[-1], other.shape[-1])  # padded or added entries of a vocabulary
    before = one[:, :both].float().log_softmax(-1)
    after = other[:, :both].to(one.device).float().log_softmax(-1)
    kl = F.kl_div(after, before, reduction="none", log_target=True).sum(-1).clamp(min=0)
    before, after = before.exp(), after.exp()
    ids = (after - before).abs().topk(min(top_k, both), dim=-1).indices
    return kl.cpu(), ids.cpu(), before.gather(-1, ids).cpu(), after.gather(-1, ids).cpu()


def _text(a: Side, b: Side, one: int) -> str:
    known = next((s.model for s in (a, b) if s.model.tokens.tokenizer is not None), None)
    return str(one) if known is None else known.to_single_str_token(one)
