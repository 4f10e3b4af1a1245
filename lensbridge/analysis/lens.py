"""The logit lens: logits of the residual stream at every layer, by the model's own head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.head import Head, head_of, require_equal
from lensbridge.analysis.lens_generation import generated
from lensbridge.analysis.lens_maps import Lens, lenses_of, seen_through
from lensbridge.analysis.lens_result import LogitLensResult
from lensbridge.analysis.positions import Positions, PositionsAsked, positions_of, real_tokens
from lensbridge.analysis.readout import Quantity, Targets
from lensbridge.analysis.selection import selection_of
from lensbridge.analysis.unembedding import read
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.tensors.positions import Count

_CHECKED = 4
"""How many vectors of the last layer are compared with the model's own logits."""


@dataclass(frozen=True)
class Entry:
    """One row of the result: a point of the stream, its label, and the layer after it."""

    name: str
    label: str
    layer: int


def logit_lens(
    model: HookedModel | ActivationCache,
    input: Any = None,
    cache: ActivationCache | None = None,
    layers: int | Sequence[int] | None = None,
    incl_mid: bool = False,
    positions: PositionsAsked = -1,
    targets: Targets | None = None,
    top_k: int | None = None,
    apply_ln: bool = True,
    vocab: Sequence[int] | Tensor | None = None,
    chunk_size: int | None = None,
    return_type: Quantity = "logits",
    *,
    batch_slice: int | slice | Sequence[int] | Tensor | None = None,
    lens: Lens | None = None,
    kl: bool = False,
    generate: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
    count: Count = "tokens",
    **forward: Any,
) -> LogitLensResult:
    """Compute logits from the residual stream before every layer and after the last.

    The model's own final norm and head are used, so the last row is the model's prediction. In an
    encoder-decoder the stream is that of the decoder. Logits are computed for a chunk of vectors at
    a time, and only what is asked for is kept.

    Args:
        model: the model, or a cache that was made with it.
        input: what to run, as `forward` takes it; or pass a cache.
        cache: a cache with `resid_pre` of the layers and the last `resid_post`.
        layers: which layers: i is the stream before layer i; `n_layers` or -1 is after the last.
        incl_mid: also the stream between attention and MLP.
        positions: an index, which counts the tokens of each row, so that -1 (or "last") is the
            last token before any padding, and which drops the axis; a list of indices, or one list
            for each example; a slice; or None for all.
        targets: tokens to report with their ranks: single tokens as text or ids, or a tensor of
            ids `[batch, pos]` with one for each position that is read.
        top_k: report the most likely tokens.
        apply_ln: whether the stream goes through the final norm first.
        vocab: report these ids. Without targets, top_k and vocab, all ids are reported.
        chunk_size: vectors for which logits are computed at once; None: as fit into 64 MB.
        return_type: "logits", "log_probs" or "probs".
        batch_slice: which examples.
        lens: a `TunedLens`; or `f(stream, row)` on each row `[batch, pos, d_model]` before the
            norm; or a list, or `nn.ModuleList`, with one `f(stream)` for each row. It may have none
            for the stream after the last layer.
        kl: also compute how far each row's distribution is from the model's own (`result.kl`).
        generate: options of `model.generate` ({} for its own): the input is continued, and the
            lens reads the positions that predicted each new token. Without targets, top_k and
            vocab, these tokens are the targets. The likeliest tokens are taken unless
            `do_sample=True`; interventions among the options act in all of it.
        enable_grad: keep values in the autograd graph.
        count: "columns": positions count columns of the batch, padding included.
        forward: other arguments of `forward`, for a run.

    Shapes: values `[row, batch, selected]`, or `[row, batch, pos, selected]`.

    Raises:
        InputError: neither input nor cache, or arguments that exclude each other.
        LensbridgeError: the last row differs from the model's own logits.
        AbsentPointError: `incl_mid` where a layer has no stream between attention and MLP.

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import logit_lens
        >>> model = lensbridge.load("demo")
        >>> result = logit_lens(model, "The Eiffel Tower is in the city of", targets=" Paris")
        >>> result.labels, result.rank_trajectory(" Paris")[-1].tolist()
        (['0_pre', '1_pre', '2_pre', '3_pre', 'final_post'], [0])
    """
    model, cache = _model_and_cache(model, input, cache)
    head, entries = head_of(model), _entries(model, layers, incl_mid)
    if generate is not None:
        names = [one.name for one in (*entries, *_entries(model, -1, False))]
        written_to = input if cache is None else None
        new = generated(model, written_to, generate, names, positions, forward)
        cache, positions, count, forward = new.cache, new.positions, "columns", {}
        if targets is None and top_k is None and vocab is None:
            targets = new.ids if batch_slice is None else new.ids[batch_slice]
    batch_slice = [batch_slice] if isinstance(batch_slice, int) else batch_slice
    layer_of_row, labels = _rows(entries)
    lenses = None if lens is None else lenses_of(lens, model, layer_of_row, labels)
    logits = None
    if cache is None:
        logits, cache = _run(model, input, entries, enable_grad, forward)
    stack, where = _streams(cache, entries, positions, batch_slice, count)
    shape = tuple(where.squeezed(stack, 2).shape[:-1])
    selection = selection_of(model, shape, targets, top_k, vocab)
    with torch.set_grad_enabled(enable_grad):
        if apply_ln:
            _check(head, cache, where, batch_slice, logits)
        own = _own_stream(model, cache, positions, batch_slice, count) if kl else None
        rows = (stack if lenses is None else _through(lenses, stack)).flatten(0, -2)
        readout = read(head, rows, shape, selection, return_type, apply_ln, chunk_size, own)
    ids = _ids(cache, entries[0].name, where, batch_slice)
    return LogitLensResult(readout, labels, layer_of_row, where, _names(targets), ids)


def _run(
    model: HookedModel,
    input: Any,
    entries: Sequence[Entry],
    enable_grad: bool,
    forward: Mapping[str, Any],
) -> tuple[Any, ActivationCache]:
    """The logits and a cache of the stream at the rows and after the last layer."""
    names = list(dict.fromkeys([*(one.name for one in entries), _last(model)]))
    run: Any = {"names_filter": names, "detach": not enable_grad, **forward}
    with torch.set_grad_enabled(enable_grad):
        return model.run_with_cache(input, **run)


def _through(lenses: Sequence[Any], stack: Tensor) -> Tensor:
    """Every row of the stream through its lens. Shapes: `[row, batch, pos, d_model]`"""
    pairs = zip(lenses, stack, strict=True)
    return torch.stack([seen_through(one, row, i) for i, (one, row) in enumerate(pairs)])


def _rows(entries: Sequence[Entry]) -> tuple[list[int], list[str]]:
    """The layer and the label of each row."""
    return [one.layer for one in entries], [one.label for one in entries]


def _own_stream(
    model: HookedModel, cache: ActivationCache, asked: PositionsAsked, some: Any, count: Count
) -> Tensor:
    """The stream after the last layer at the chosen positions. Shapes: `[batch pos, d_model]`"""
    after = Entry(_last(model), "final_post", len(model.native.blocks))
    return _streams(cache, [after], asked, some, count)[0].flatten(0, -2)


def _ids(cache: ActivationCache, name: str, where: Positions, batch_slice: Any) -> Tensor | None:
    """The tokens that were read, if the cache has as many as positions of the stream."""
    tokens = cache.tokens
    if tokens is None or tokens.shape != _batched(cache, name).shape[:2]:
        return None
    return where.of(tokens if batch_slice is None else tokens[batch_slice]).cpu()


def _model_and_cache(
    model: HookedModel | ActivationCache, input: Any, cache: ActivationCache | None
) -> tuple[HookedModel, ActivationCache | None]:
    if isinstance(model, ActivationCache):
        if cache is not None or input is not None:
            raise InputError(
                "The first argument is a cache, which is read: pass no other input or cache."
            )
        cache = model
        if not isinstance(cache.model, HookedModel):
            raise InputError("This cache has no model: call logit_lens(model, cache=cache).")
        return cache.model, cache
    if isinstance(input, ActivationCache) and cache is None:
        input, cache = None, input
    if (input is None) == (cache is None):
        raise InputError("Pass either an input to run or a cache to read.")
    return model, cache


def _last(model: HookedModel) -> str:
    main = model.native.main
    return f"{main.prefix}.{len(main.blocks) - 1}.hook_resid_post"


def _entries(model: HookedModel, layers: int | Sequence[int] | None, incl_mid: bool) -> list[Entry]:
    prefix, count = model.native.main.prefix, len(model.native.blocks)
    asked = range(count + 1) if layers is None else _listed(layers)
    found = []
    for one in asked:
        layer = one + count + 1 if one < 0 else one
        if not 0 <= layer <= count:
            raise InputError(
                f"There is no layer {one}: rows are 0 to {count}, the last one after the layers."
            )
        if layer == count:
            found.append(Entry(_last(model), "final_post", count))
            continue
        found.append(Entry(f"{prefix}.{layer}.hook_resid_pre", f"{layer}_pre", layer))
        if incl_mid:
            name = model.vocabulary.canonical(f"{prefix}.{layer}.hook_resid_mid")
            found.append(Entry(name, f"{layer}_mid", layer))
    if not found:
        raise InputError("layers is empty: pass at least one layer, or None for all.")
    return found


def _listed(layers: Any) -> list[int]:
    several = layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    wrong = [one for one in several if isinstance(one, bool) or not hasattr(one, "__index__")]
    if wrong:
        raise InputError(f"layers is a layer's number or a list of them, not {layers!r}.")
    return [int(one) for one in several]


def _chosen_rows(values: Tensor, chosen: Any) -> Tensor:
    """The examples of a batch that were asked for.

    Raises:
        InputError: there are no such examples.
    """
    try:
        found = values[chosen]
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"batch_slice is a slice or a list of examples, of which there are {len(values)}, not "
            f"{chosen!r}."
        ) from error
    if not len(found):
        raise InputError(f"batch_slice={chosen!r} is no example; there are {len(values)}.")
    return found


def _streams(
    cache: ActivationCache,
    entries: Sequence[Entry],
    asked: PositionsAsked,
    batch_slice: Any,
    count: Count,
) -> tuple[Tensor, Positions]:
    """The stream of every row at the chosen positions: `[row, batch, pos, d_model]`."""
    cache.require([one.name for one in entries])
    first = _batched(cache, entries[0].name)
    where = positions_of(asked, real_tokens(cache, *first.shape[:2]), count)
    if batch_slice is not None:
        columns, real = (_chosen_rows(one, batch_slice) for one in (where.columns, where.real))
        where = Positions(columns, real, where.single)
    rows = slice(None) if batch_slice is None else batch_slice
    streams = [where.of(_batched(cache, one.name)[rows]) for one in entries]
    return torch.stack([stream.to(streams[0].device) for stream in streams]), where


def _batched(cache: ActivationCache, name: str) -> Tensor:
    return cache[name] if cache.has_batch_dim else cache[name].unsqueeze(0)


def _check(
    head: Head, cache: ActivationCache, where: Positions, batch_slice: Any, logits: Any
) -> None:
    """Compare logits of the last layer's stream with the model's own.

    If the cache has no logits, the part of the model after the last layer is run.
    """
    name = _last(head.model)
    rows = slice(None) if batch_slice is None else batch_slice
    if name not in cache:
        return
    with torch.no_grad():
        stream = where.of(_batched(cache, name)[rows]).flatten(0, 1)[:_CHECKED]
        if logits is None and "hook_logits" in cache:
            logits = _batched(cache, "hook_logits")
        if logits is None or logits.shape[1] != _batched(cache, name).shape[1]:  # of the last alone
            head.check(stream)
            return
        own = where.of(logits[rows]).flatten(0, 1)[:_CHECKED]
        require_equal(head.logits(stream), own, head.model)


def _names(targets: Targets | None) -> list[str | None] | None:
    if targets is None or isinstance(targets, Tensor):
        return None
    several = [targets] if isinstance(targets, str | int) else list(targets)
    return [one if isinstance(one, str) else None for one in several]
