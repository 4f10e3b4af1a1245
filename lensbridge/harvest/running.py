"""run: the shards of a harvest that are not there yet, computed and written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from socket import gethostname
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest import kept_tokenizer
from lensbridge.harvest.computing import DOCUMENTS, TOKENS, Computer
from lensbridge.harvest.engine import Engine, State, Told
from lensbridge.harvest.folder import Folder
from lensbridge.harvest.identity import identity
from lensbridge.harvest.job import Job
from lensbridge.harvest.locks import Lock
from lensbridge.harvest.manifest import Shard, file_of
from lensbridge.harvest.packing import Row
from lensbridge.harvest.report import Report
from lensbridge.harvest.shard_rows import ShardRows
from lensbridge.harvest.spec import Spec
from lensbridge.harvest.writing import Writing, interrupts


@dataclass(frozen=True)
class Part:
    """Which shards a process computes: those with `number % of == index`.

    Args:
        index: from 0.
        of: how many parts.
        name: of the manifest of this part.
    """

    index: int = 0
    of: int = 1
    name: str = "main"

    @classmethod
    def read(cls, given: str | tuple[int, int] | None) -> Part:
        """The part that is asked for, or that the environment of a launcher names.

        Raises:
            InputError: it is not a part.
        """
        if given is None:
            world = int(os.environ.get("WORLD_SIZE", "1"))
            rank = int(os.environ.get("RANK", "0"))
            return cls(rank, world, f"rank-{rank:05d}") if world > 1 else cls()
        try:
            index, of = given.split("/") if isinstance(given, str) else given
            index, of = int(index), int(of)
        except (TypeError, ValueError) as error:
            raise InputError(f"A part is written '3/64', not {given!r}.") from error
        if not 0 <= index < of:
            raise InputError(f"There is no part {index}/{of}: they are 0/{of} to {of - 1}/{of}.")
        return cls(index, of, f"part-{index}-of-{of}")


def run(
    spec: Spec,
    out: str | PathLike[str],
    resume: bool,
    engine: Engine | None,
    part: str | tuple[int, int] | None,
    claim: bool,
    told: Told | None,
) -> Report:
    """Compute the shards that are not in the folder; see `Harvest.run`."""
    mine, folder = Part.read(part), Folder(Path(out))
    job = Job.of(spec)
    # ranks and parts come one after another, and find what the others have written
    folder.begin(identity(job), resume or mine.of > 1 or claim)
    kept_tokenizer.keep(job.model.tokens.tokenizer, folder.path)
    began = time.monotonic()
    if engine is not None:
        before = set(folder.shards())
        engine.run(job, folder, told)
        shards = folder.shards()
        made = tuple(number for number in shards if number not in before)
        ran = sum(shards[number].run for number in made)
        return Report(folder.path, shards, made, ran, time.monotonic() - began)
    local = LocalRun(job, folder, mine, claim, told)
    local.run()
    return Report(
        folder.path,
        folder.shards(),
        tuple(local.made),
        local.tokens,
        time.monotonic() - began,
        local.stopped.is_set(),
    )


def index(spec: Spec, out: str | PathLike[str]) -> int:
    """Keep where every shard begins; see `Harvest.index`."""
    job, folder = Job.of(spec), Folder(Path(out))
    folder.begin(identity(job), resume=True)
    kept_tokenizer.keep(job.model.tokens.tokenizer, folder.path)
    rows = job.shard_rows()
    known_shards(folder, rows)
    cuts = rows.all_cuts()
    rows.require_some()
    folder.keep_cuts(cuts)
    return len(cuts)


@dataclass
class LocalRun:
    """The shards that this process computes.

    Args:
        job: the harvest.
        folder: where they go.
        part: which they are.
        claim: whether it takes any that nobody has.
        told: told how far it is.

    Attributes:
        made: the shards that it wrote.
        tokens: that it ran.
        bytes: that it wrote.
        stopped: set by an interrupt.
        locks: those on the shards that it has claimed and not written yet.
    """

    job: Job
    folder: Folder
    part: Part
    claim: bool
    told: Told | None
    made: list[int] = field(default_factory=list)
    tokens: int = 0
    bytes: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    locks: dict[int, Lock] = field(default_factory=dict)

    def run(self) -> None:
        """Compute and write them; computing one and writing the one before overlap."""
        name = f"{self.part.name}-{gethostname()}-{os.getpid()}" if self.claim else self.part.name
        rows, computer = self.job.shard_rows(), Computer(self.job)
        there = known_shards(self.folder, rows)
        began = time.monotonic()
        with (
            ExitStack() as ended,
            self.folder.writing(name) as writer,
            interrupts(self.stopped),
            Writing(writer, self._wrote) as writing,
        ):
            ended.callback(self._free)
            for number in self._numbers(rows, there):
                found = [] if self.stopped.is_set() else rows.rows(number)
                if not found:
                    break
                tensors = computer.compute(found, self._progress(number, began))
                writing.put(number, tensors, about(rows, number, found, tensors))
        rows.require_some()

    def _numbers(self, rows: ShardRows, there: dict[int, Shard]) -> Iterator[int]:
        """The numbers of the shards that are this process's, until the data ends."""
        number = 0 if self.claim else self.part.index
        while rows.count is None or number < rows.count:
            if number not in there:
                yield from self._claimed(number)
            number += 1 if self.claim else self.part.of

    def _claimed(self, number: int) -> Iterator[int]:
        """The number, if it is not another process's; it is given back once it is written."""
        if not self.claim:
            yield number
            return
        lock = Lock(self.folder.manifests / f"{file_of(number)}.lock")
        if not lock.take():
            return
        self.locks[number] = lock
        if number in self.folder.shards():  # written since this run began
            self.locks.pop(number).free()
            return
        yield number

    def _free(self) -> None:
        """Give back what was claimed and not written."""
        while self.locks:
            self.locks.popitem()[1].free()

    def _wrote(self, shard: Shard) -> None:
        self.made.append(shard.number)
        self.bytes += shard.bytes
        if shard.number in self.locks:
            self.locks.pop(shard.number).free()

    def _progress(self, number: int, began: float) -> Callable[[Sequence[Row]], None]:
        def ran(batch: Sequence[Row]) -> None:
            self.tokens += sum(len(row.ids) for row in batch)
            if self.told is not None:
                share = self.job.source.share(batch[-1].after.place)
                seconds = time.monotonic() - began
                self.told(State(number, self.tokens, share, self.bytes, seconds))

        return ran


def known_shards(folder: Folder, rows: ShardRows) -> dict[int, Shard]:
    """The finished shards whose files are whole; the rows learn where shards begin.

    Raises:
        InputError: a file is not as it was written.
    """
    for number, cut in folder.cuts().items():
        rows.know(number, cut)
    there = folder.shards()
    for shard in there.values():
        start, after = shard.cuts()
        rows.know(shard.number, start)
        rows.know(shard.number + 1, after)
    damaged = folder.damaged(there, thorough=False)
    return {number: shard for number, shard in there.items() if number not in damaged}


def about(
    rows: ShardRows, number: int, found: list[Row], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """What a manifest says of a shard beside its file."""
    documents = tensors[DOCUMENTS]
    inside = documents[documents >= 0]
    after = rows.after(number)
    return {
        "tokens": len(tensors[TOKENS]),
        "run": sum(len(row.ids) for row in found),
        "rows": len(found),
        "documents": (int(inside.min()), int(inside.max())) if len(inside) else (-1, -1),
        "start": found[0].start.to_dict(),
        "after": None if after is None else after.to_dict(),
    }
