"""Logits of vectors with the width of the stream: values, ranks and entropy, in chunks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.analysis.head import Head, head_of
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.tokens import Tokens, as_tensor

Quantity = Literal["logits", "log_probs", "probs"]
"""What is reported of each token."""

Selected = Literal["all", "vocab", "targets", "top_k"]
"""Which tokens are reported."""

Targets: TypeAlias = str | int | Sequence[str | int] | Tensor
"""Tokens as text or ids, the same for every vector; or a tensor of ids, one for each vector."""

COLUMN = {"logits": "logit", "log_probs": "log_prob", "probs": "probability"}
"""The name of each quantity in a data frame."""

_CHUNK = 2**24
"""How many logits are computed at once by default: 64 MB in float32."""


@dataclass(frozen=True, repr=False)
class LogitReadout:
    """The next token that vectors predict.

    Args:
        values: the quantity that was asked for.
        return_type: which quantity it is.
        selected: which tokens the last axis of the values has: all, a part of the vocabulary,
            targets, or the top k of each vector.
        ids: ids of these tokens; None for all. For the top k, and for targets that differ between
            vectors, one for each value.
        ranks: how many tokens have a higher logit; None unless targets or the top k were asked for.
        entropy: the entropy of the whole distribution, whatever was selected.
        tokenizer: the model's, with its rules for BOS, for `decode`.
        kl: the KL divergence of the whole distribution from another one, where one was given.

    Shapes: values and ranks `[..., selected]`; entropy and kl `[...]`; ids `[selected]` or as
        values.
    Units: entropy and kl in nats; rank 0 is the most likely token.
    """

    values: Tensor
    return_type: Quantity
    selected: Selected
    ids: Tensor | None
    ranks: Tensor | None
    entropy: Tensor
    tokenizer: Tokens
    kl: Tensor | None = None

    def __repr__(self) -> str:
        shape = list(self.values.shape)
        return f"LogitReadout({self.return_type} {shape} of {self.selected})"

    @property
    def tokens(self) -> Any:
        """The selected tokens as text, as `decode()` gives them."""
        return self.decode()

    def decode(self, tokenizer: Any = None) -> Any:
        """The selected tokens as text, nested as `ids` is.

        Raises:
            InputError: all of the vocabulary is selected.
            TokenizerMissingError: the model has no tokenizer and none was passed.
        """
        if self.ids is None:
            raise InputError(
                "The whole vocabulary is selected, so there are no ids to decode. Pass top_k, "
                "targets or vocab."
            )
        return decoded(self.ids, self.tokenizer, tokenizer)


def decoded(ids: Tensor, tokens: Tokens, tokenizer: Any = None) -> Any:
    """Ids as text, nested as they are."""
    known = tokens if tokenizer is None else Tokens(lambda: tokenizer)
    if ids.ndim > 1:
        return [decoded(one, tokens, tokenizer) for one in ids]
    return [known.to_str_tokens(one.reshape(1))[0] for one in ids.cpu()]


def logit_readout(
    model: HookedModel,
    vectors: Tensor,
    *,
    targets: Targets | None = None,
    top_k: int | None = None,
    vocab: Sequence[int] | Tensor | None = None,
    return_type: Quantity = "logits",
    apply_ln: bool = True,
    chunk_size: int | None = None,
    enable_grad: bool = False,
) -> LogitReadout:
    """Compute logits of vectors as if they were the stream after the last layer.

    Args:
        model: the model.
        vectors: residual streams, directions of a dictionary, rows of a weight.
        targets: tokens to report, with their ranks: single tokens as text or ids, the same for
            every vector; or a tensor of ids, one for each vector (`[...]`).
        top_k: report the most likely tokens.
        vocab: report these ids. Without any of the three, all ids are reported.
        return_type: "logits", "log_probs" or "probs".
        apply_ln: whether vectors go through the final norm first.
        chunk_size: vectors for which logits are computed at once; None: as fit into 64 MB.
        enable_grad: keep the values in the autograd graph.

    Shapes: `[..., d_model]` -> values `[..., selected]`

    Raises:
        InputError: vectors of another width, or arguments that exclude each other.
        LensbridgeError: a model whose head does not read each position by itself, or whose own
            forward gives other logits.

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import logit_readout
        >>> model = lensbridge.load("demo")
        >>> logit_readout(model, model.W_U[:, model.to_single_token(" Rome")], top_k=1).decode()
        [' Rome']
    """
    head = head_of(model)
    width = model.cfg.d_model
    if vectors.ndim == 0 or vectors.shape[-1] != width or vectors.numel() == 0:
        raise InputError(
            f"Vectors are [..., {width}], with the width of the stream, not {list(vectors.shape)}."
        )
    selection = selection_of(model, vectors.shape[:-1], targets, top_k, vocab)
    with torch.set_grad_enabled(enable_grad):
        rows = vectors.reshape(-1, width).to(model.dtype)
        if apply_ln:
            with torch.no_grad():
                head.check(rows[:1])
        return read(head, rows, vectors.shape[:-1], selection, return_type, apply_ln, chunk_size)


@dataclass(frozen=True)
class Selection:
    """Which tokens of each row are kept: `ids` of targets `[row, n]`, or of a vocabulary `[n]`."""

    kind: Selected
    k: int = 0
    ids: Tensor | None = None
    shared: Tensor | None = None

    @property
    def width(self) -> int:
        """How many tokens of each row are kept; 0 for all."""
        return self.k if self.ids is None else self.ids.shape[-1]


def selection_of(
    model: HookedModel,
    shape: tuple[int, ...],
    targets: Targets | None,
    top_k: int | None,
    vocab: Sequence[int] | Tensor | None,
) -> Selection:
    """The selection that was asked for, checked against the vocabulary."""
    given = {"targets": targets, "top_k": top_k, "vocab": vocab}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise InputError(f"Pass one of targets, top_k and vocab, not {' and '.join(asked)}.")
    size = model.cfg.d_vocab_out
    if top_k is not None:
        if not _is_whole(top_k) or not 0 < top_k <= size:
            raise InputError(f"top_k is 1 to {size}, the size of the vocabulary, not {top_k!r}.")
        return Selection("top_k", k=top_k)
    if vocab is not None:
        ids = _checked(as_tensor(vocab).reshape(-1), size)
        return Selection("vocab", ids=ids)
    if targets is None:
        return Selection("all")
    if isinstance(targets, Tensor) and targets.ndim:
        return Selection("targets", ids=_per_row(_checked(targets, size), shape))
    shared = _checked(token_ids(model, targets), size)
    rows = shared.expand(torch.Size(shape).numel(), -1)
    return Selection("targets", ids=rows, shared=shared)


def token_ids(model: HookedModel, given: Targets) -> Tensor:
    """Ids of single tokens that were given as text or ids.

    Shapes: `[token]`

    Raises:
        TokenError: a text that is not one token.
    """
    alone = isinstance(given, str) or not isinstance(given, Iterable) or _is_whole(given)
    several: list[Any] = [given] if alone else list(given)  # type: ignore[arg-type]
    if not all(isinstance(one, str) or _is_whole(one) for one in several):
        raise InputError(
            f"Targets are single tokens, as text or ids, one or a list of them, not {given!r}."
        )
    return torch.tensor(
        [model.to_single_token(t) if isinstance(t, str) else int(t) for t in several],
        dtype=None if several else torch.long,
    )


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _checked(ids: Tensor, size: int) -> Tensor:
    if ids.numel() == 0:
        raise InputError("targets or vocab is empty: pass at least one token.")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"Ids are whole numbers, not {ids.dtype} of shape {list(ids.shape)}.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise InputError(f"Ids are 0 to {size - 1}; the ids passed are from {low} to {high}.")
    return ids.long()


def _per_row(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return ids.broadcast_to(shape).reshape(-1, 1)
    except RuntimeError as error:
        raise InputError(
            f"A tensor of targets has one id for each vector, {list(shape)}, not "
            f"{list(ids.shape)}. For the same targets everywhere, pass a list."
        ) from error


def read(
    head: Head,
    rows: Tensor,
    shape: tuple[int, ...],
    selection: Selection,
    return_type: Quantity,
    apply_ln: bool,
    chunk_size: int | None,
    reference: Tensor | None = None,
) -> LogitReadout:
    """Logits of rows `[row, d_model]`, chunk by chunk; what is selected is kept, in `shape`.

    With a reference `[n, d_model]`, row i is compared with row i modulo n of it.
    """
    if return_type not in COLUMN:
        raise InputError(f"return_type is {', '.join(map(repr, COLUMN))}, not {return_type!r}.")
    if chunk_size is not None and not (_is_whole(chunk_size) and chunk_size >= 1):
        raise InputError(f"chunk_size is 1 or more, not {chunk_size!r}.")
    step = chunk_size or max(1, _CHUNK // head.model.cfg.d_vocab_out)
    chunks, divergences = [], []
    for i in range(0, len(rows), step):
        logits = head.logits(rows[i : i + step], apply_ln)
        chunks.append(_reduced(logits, selection, slice(i, i + step), return_type))
        if reference is not None:
            beside = reference[torch.arange(i, i + len(logits)) % len(reference)]
            divergences.append(_divergence(head.logits(beside.to(rows.device), apply_ln), logits))
    values, ids, ranks, entropy = (_joined(parts, shape) for parts in zip(*chunks, strict=True))
    assert values is not None
    assert entropy is not None
    if selection.kind == "vocab":
        ids = selection.ids
    elif selection.shared is not None:
        ids = selection.shared
    tokens = head.model.tokens
    kl = _joined(tuple(divergences), shape)
    return LogitReadout(values, return_type, selection.kind, ids, ranks, entropy, tokens, kl)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """The KL divergence of each found distribution from the wanted one, in nats. Shapes: `[row]`"""
    known, seen = (
        (one if one.dtype == torch.float64 else one.float()).log_softmax(-1)
        for one in (wanted, found)
    )
    shares = torch.nn.functional.kl_div(seen, known.to(seen), log_target=True, reduction="none")
    return shares.sum(-1)


def _joined(parts: tuple[Tensor | None, ...], shape: tuple[int, ...]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    if not there:
        return None
    whole = torch.cat(there)
    return whole.reshape((*shape, *whole.shape[1:]))


def _reduced(
    logits: Tensor, selection: Selection, rows: slice, return_type: Quantity
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Values, ids, ranks and entropy of a chunk `[row, d_vocab]`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = wide.log_softmax(-1)
    entropy = torch.special.entr(log_probs.exp()).sum(-1)
    ids, ranks = _chosen(logits, selection, rows)
    values = logits if return_type == "logits" else log_probs
    kept = values if ids is None else values.gather(-1, ids)
    kept = kept.exp() if return_type == "probs" else kept
    differing = selection.kind in ("targets", "top_k")
    return kept, ids if differing else None, ranks, entropy


def _chosen(
    logits: Tensor, selection: Selection, rows: slice
) -> tuple[Tensor | None, Tensor | None]:
    """Ids of the kept columns of each row, and their ranks."""
    if selection.kind == "all":
        return None, None
    if selection.kind == "top_k":
        ids = logits.topk(selection.k, dim=-1).indices
        return ids, torch.arange(selection.k, device=ids.device).expand_as(ids)
    assert selection.ids is not None
    if selection.kind == "vocab":
        return selection.ids.to(logits.device).expand(len(logits), -1), None
    ids = selection.ids[rows].to(logits.device)
    own = logits.gather(-1, ids)
    return ids, torch.stack([(logits > one.unsqueeze(-1)).sum(-1) for one in own.unbind(-1)], -1)
