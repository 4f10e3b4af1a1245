"""A harvest by hand: rows made by the formula, the bare model run with plain hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Rows = list[tuple[list[int], list[int]]]
"""The ids of each row, and the document of each token (-1: BOS in front of joined documents)."""


def joined(texts: Sequence[str], tokenizer: Any, length: int) -> Rows:
    """Documents with EOS after each, cut into rows that begin with BOS."""
    stream = [
        (one, number)
        for number, text in enumerate(texts)
        if text.strip()
        for one in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
    ]
    rows = []
    for start in range(0, len(stream), length - 1):
        part = stream[start : start + length - 1]
        rows.append(([tokenizer.bos_token_id, *(i for i, _ in part)], [-1, *(n for _, n in part)]))
    return rows


def cut(texts: Sequence[str], tokenizer: Any, length: int) -> Rows:
    """A row for each document, cut."""
    rows = []
    for number, text in enumerate(texts):
        if text.strip():
            ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]][:length]
            rows.append((ids, [number] * len(ids)))
    return rows


def continued(texts: Sequence[str], tokenizer: Any, length: int) -> Rows:
    """Rows within documents, each with a BOS."""
    rows = []
    for number, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"] if text.strip() else []
        for start in range(0, len(ids), length - 1):
            row = [tokenizer.bos_token_id, *ids[start : start + length - 1]]
            rows.append((row, [number] * len(row)))
    return rows


PACKINGS: dict[str, Callable[..., Rows]] = {"concat": joined, "pad": cut, "document": continued}


def streams(bare: Any, rows: Rows, batch: int, shard_rows: Sequence[int], layer: int) -> Tensor:
    """The stream after a layer of GPT-2, for each token; batches end where shards end."""
    found, at = [], 0
    for size in shard_rows:
        for start in range(at, at + size, batch):
            found.append(_of_batch(bare, rows[start : min(start + batch, at + size)], layer))
        at += size
    assert at == len(rows)
    return torch.cat(found)


def _of_batch(bare: Any, rows: Rows, layer: int) -> Tensor:
    wide = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([one + [0] * (wide - len(one)) for one, _ in rows])
    mask = torch.tensor([[1] * len(one) + [0] * (wide - len(one)) for one, _ in rows])
    kept: list[Tensor] = []
    handle = bare.transformer.h[layer].register_forward_hook(
        lambda _, given, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        bare(ids, attention_mask=mask if not mask.all() else None)
    handle.remove()
    return kept[0][mask.bool()]
