"""Shards computed: the tensors of some rows, a function of the harvest and of these rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lensbridge.gradients.backward import without_cache
from lensbridge.harvest.job import Job
from lensbridge.harvest.packing import Row
from lensbridge.harvest.reductions import Reduction
from lensbridge.harvest.shard_rows import batches
from lensbridge.inputs.special import is_special, known_special_ids

TOKENS, POSITIONS, ROWS, DOCUMENTS, OFFSETS = "tokens", "position", "row", "document", "offsets"
"""Tensors beside the activations: of each entry the id, the position in its row, the number of its
row and that of its document (-1 for BOS in front of joined documents); and where the entries of
each row begin, `[row + 1]`."""

_FEW = 4
"""Tokens that are run to see how large values are."""

BESIDE = (TOKENS, POSITIONS, ROWS, DOCUMENTS, OFFSETS)


@dataclass
class Gathered:
    """Tensors that are filled batch by batch, each in memory once.

    Args:
        size: entries of each.
    """

    size: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def put(self, name: str, at: int, values: Tensor) -> None:
        """Write some entries. Shapes: `[entry, ...]`"""
        if name not in self.tensors:
            self.tensors[name] = torch.empty((self.size, *values.shape[1:]), dtype=values.dtype)
        self.tensors[name][at : at + len(values)].copy_(values)


@dataclass(frozen=True)
class Batch:
    """Rows as one tensor, padded on the right.

    Args:
        rows: the rows.
        pad: the id of padding.
    """

    rows: Sequence[Row]
    pad: int

    @cached_property
    def width(self) -> int:
        """Columns."""
        return max(len(row.ids) for row in self.rows)

    @cached_property
    def ids(self) -> Tensor:
        """Shapes: `[row, column]`"""
        return self._filled([row.ids for row in self.rows], self.pad)

    @cached_property
    def documents(self) -> Tensor:
        """Shapes: `[row, column]`"""
        return self._filled([row.documents for row in self.rows], -1)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each row. Shapes: `[row]`"""
        return torch.tensor([len(row.ids) for row in self.rows])

    @cached_property
    def mask(self) -> Tensor:
        """Which columns are tokens. Shapes: `[row, column]`"""
        return torch.arange(self.width) < self.lengths[:, None]

    @property
    def is_padded(self) -> bool:
        """Whether rows have different lengths."""
        return bool((self.lengths != self.width).any())

    def _filled(self, lists: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([one + [fill] * (self.width - len(one)) for one in lists])


@dataclass(frozen=True)
class Computer:
    """Computes shards of a harvest.

    Args:
        job: the harvest.
    """

    job: Job

    @cached_property
    def _special(self) -> frozenset[int]:
        return known_special_ids(self.job.model.tokens, self.job.model.native, True)

    @cached_property
    def _bos(self) -> int:
        """The id of BOS; -1 where there is none."""
        tokens = self.job.model.tokens
        config = self.job.model.native.main.config.to_dict()
        known = tokens.tokenizer is not None
        bos = tokens.special("bos") if known else config.get("bos_token_id")
        return -1 if bos is None else bos

    def kept(self, batch: Batch) -> Tensor:
        """Which tokens of a batch are kept. Shapes: `[row, column]`, bool"""
        keep = self.job.spec.keep
        found = torch.ones_like(batch.mask) if keep.pad else batch.mask
        first = torch.zeros_like(found)
        first[:, 0] = batch.ids[:, 0] == self._bos
        if not keep.bos:
            found = found & ~first
        if not keep.special:
            found = found & ~(is_special(batch.ids, self._special) & batch.mask & ~first)
        return found if keep.positions is None else found & self._placed(batch, keep.positions)

    def _placed(self, batch: Batch, positions: slice | Sequence[int]) -> Tensor:
        found = torch.ones_like(batch.mask)
        for row, length in enumerate(batch.lengths.tolist()):
            inside = range(length)
            chosen = (
                inside[positions]
                if isinstance(positions, slice)
                else [one % length for one in positions if -length <= one < length]
            )
            found[row, :length] = False
            found[row, list(chosen)] = True
        return found

    def counts(self, kept: Tensor) -> Tensor:
        """The entries of each row, of whose tokens so many are kept. Shapes: `[row]`"""
        counts = kept.sum(1)
        return counts.clamp(max=1) if self._per_row else counts

    @property
    def _reduction(self) -> Reduction | None:
        return self.job.spec.reduce  # type: ignore[return-value]  # the spec made one of it

    @property
    def _per_row(self) -> bool:
        return self._reduction is not None and self._reduction.per_row

    def batches(self, rows: Sequence[Row]) -> list[Batch]:
        """The batches that rows are run in."""
        pad = self.job.model.tokens.pad_token_id if self.job.model.tokenizer is not None else 0
        return [Batch(some, pad) for some in batches(rows, self.job.spec.batch)]

    def entry_bytes(self, row: Row) -> dict[str, int]:
        """Bytes of one entry of each tensor of activations; the first tokens of a row are run."""
        few = Row(row.start, row.after, row.ids[:_FEW], row.documents[:_FEW])
        batch, found = Batch([few], 0), {}
        for name, values in self._run(batch).items():
            for part, stored in self._stored(values, torch.ones_like(batch.mask)).items():
                found[f"{name}.{part}" if part else name] = stored[0].nbytes
        return found

    def compute(
        self, rows: Sequence[Row], told: Callable[[Sequence[Row]], None] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a shard.

        Args:
            rows: its rows.
            told: called after each batch with its rows.

        Shapes: activations `[entry, ...]`, the others as `BESIDE` says.
        """
        parts = self.batches(rows)
        masks = [self.kept(batch) for batch in parts]
        counts = [self.counts(kept) for kept in masks]
        sizes = [int(one.sum()) for one in counts]
        gathered, at = Gathered(sum(sizes)), 0
        for batch, kept, size in zip(parts, masks, sizes, strict=True):
            self._add(gathered, at, batch, kept)
            at += size
            if told is not None:
                told(batch.rows)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), *counts]).cumsum(0)
        return {**gathered.tensors, OFFSETS: offsets}

    def _add(self, gathered: Gathered, at: int, batch: Batch, kept: Tensor) -> None:
        values = self._run(batch)
        for name in self.job.names:
            for part, stored in self._stored(values.pop(name), kept).items():
                full = f"{name}.{part}" if part else name
                gathered.put(full, at, stored)
        chosen = self._representative(kept)
        rows, columns = chosen.nonzero(as_tuple=True)
        numbers = torch.tensor([row.start.row for row in batch.rows])
        gathered.put(TOKENS, at, batch.ids[chosen].int())
        gathered.put(POSITIONS, at, columns.int())
        gathered.put(ROWS, at, numbers[rows])
        gathered.put(DOCUMENTS, at, batch.documents[chosen])

    def _representative(self, kept: Tensor) -> Tensor:
        """The tokens that entries are named after: the last kept one, where a row has one entry."""
        if not self._per_row:
            return kept
        return kept & (kept.flip(1).cumsum(1).flip(1) == 1)

    def _run(self, batch: Batch) -> dict[str, Tensor]:
        """The values of the points. Shapes: `[row, column, ...]`"""
        model, job = self.job.model, self.job
        given = without_cache(model, ())
        if batch.is_padded:
            given["attention_mask"] = batch.mask.long().to(model.device)
        dtype = job.dtype if self._reduction is None else torch.float32
        with torch.no_grad():
            residual, cache = model.run_with_cache(
                batch.ids.to(model.device),
                names_filter=[one for one in job.names if one != job.at_stop],
                return_type=None,
                return_cache_object=False,
                dtype=dtype,
                stop_at_layer=job.last_layer,
                **given,
            )
        if job.at_stop is None or residual is None:
            return cache
        return {**cache, job.at_stop: residual if dtype is None else residual.to(dtype)}

    def _stored(self, values: Tensor, kept: Tensor) -> dict[str, Tensor]:
        every, kept = bool(kept.all()), kept.to(values.device)
        if self._reduction is None:
            return {"": values.flatten(0, 1) if every else values[kept]}
        found: dict[str, list[Tensor]] = {}
        dtype = self.job.dtype or self.job.model.dtype
        with torch.no_grad():
            for row in range(len(values)):
                if kept[row].any():
                    for part, tensor in self._reduction(values[row][kept[row]]).items():
                        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
                        found.setdefault(part, []).append(cast.cpu())
        if not found:  # a shard without entries has its tensors all the same
            few = self._stored(values[:1, :1], torch.ones_like(kept[:1, :1]))
            return {part: tensor[:0] for part, tensor in few.items()}
        return {part: torch.cat(tensors) for part, tensors in found.items()}
