"""Logits of vectors with the width of the stream, computed in chunks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lensbridge.analysis.head import Head, head_of
from lensbridge.analysis.readout import COLUMN, LogitReadout, Quantity, Targets
from lensbridge.analysis.selection import Selection, is_whole, selection_of
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel

_CHUNK = 2**24
"""How many logits are computed at once by default: 64 MB in float32."""


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
    if chunk_size is not None and not (is_whole(chunk_size) and chunk_size >= 1):
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
