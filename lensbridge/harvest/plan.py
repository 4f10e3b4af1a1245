"""plan: what a harvest will write and take. A few tokens are run, to see how wide values are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lensbridge.harvest.computing import Computer
from lensbridge.harvest.job import Job
from lensbridge.harvest.spec import Spec
from lensbridge.viz.numbers import bytes_as_text

_BESIDE = 4 + 4 + 8 + 8
"""Bytes of an entry beside its activations: token, position, row, document."""

_IN_MEMORY = 3
"""Shards that are in memory at once: one computed, one waiting, one written."""


@dataclass(frozen=True)
class Plan:
    """What a harvest will write and take.

    Args:
        points: name of a tensor -> bytes of one entry.
        documents: documents that are read.
        rows: rows that are run.
        run_tokens: tokens that are run.
        tokens: entries that are stored: tokens that are kept, or rows that are reduced.
        shards: how many shards.
        shard_tokens: entries of the largest shard.
        batch_bytes: of the activations of one batch.
        last_layer: the layer before which a run stops; None: the model is run to its end.
        n_layers: layers of the model.
    """

    points: Mapping[str, int]
    documents: int
    rows: int
    run_tokens: int
    tokens: int
    shards: int
    shard_tokens: int
    batch_bytes: int
    last_layer: int | None
    n_layers: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one entry in all tensors."""
        return sum(self.points.values()) + _BESIDE

    @property
    def bytes(self) -> int:
        """Of all shards, without the headers of the files."""
        return self.tokens * self.token_bytes

    @property
    def shard_bytes(self) -> int:
        """Of the largest shard."""
        return self.shard_tokens * self.token_bytes

    @property
    def peak_bytes(self) -> int:
        """Memory beside the model: the shards that are computed and written, and one batch."""
        return min(self.shards, _IN_MEMORY) * self.shard_bytes + self.batch_bytes

    def __str__(self) -> str:
        layers = self.n_layers if self.last_layer is None else self.last_layer
        tensors = [f"  {name}: {size} bytes" for name, size in self.points.items()]
        return "\n".join(
            [
                f"{self.documents:,} documents, {self.rows:,} rows, {self.run_tokens:,} tokens to "
                f"run through {layers} of {self.n_layers} layers",
                f"{self.tokens:,} entries of {self.token_bytes:,} bytes in {self.shards} shards of "
                f"{bytes_as_text(self.shard_bytes)} at most: {bytes_as_text(self.bytes)} in all",
                *tensors,
                f"memory beside the model: {bytes_as_text(self.peak_bytes)} at most",
            ]
        )

    __repr__ = __str__


def plan(spec: Spec) -> Plan:
    """What a harvest will write and take; see `Harvest.plan`."""
    job = Job.of(spec)
    rows, computer = job.shard_rows(), Computer(job)
    first = rows.rows(0)
    sizes = computer.entry_bytes(first[0]) if first else {}
    documents, count, run, kept, largest, number = set[int](), 0, 0, 0, 0, 0
    while found := rows.rows(number):
        masks = map(computer.kept, computer.batches(found))
        entries = sum(int(computer.counts(one).sum()) for one in masks)
        documents.update(one for row in found for one in row.documents if one >= 0)
        count, run = count + len(found), run + sum(len(row.ids) for row in found)
        kept, largest, number = kept + entries, max(largest, entries), number + 1
    return Plan(
        points=sizes,
        documents=len(documents),
        rows=count,
        run_tokens=run,
        tokens=kept,
        shards=number,
        shard_tokens=largest,
        batch_bytes=spec.batch * job.length * sum(sizes.values()),
        last_layer=job.last_layer,
        n_layers=len(job.model.native.main.blocks),
    )
