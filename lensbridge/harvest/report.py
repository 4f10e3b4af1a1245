"""Report: what a run of a harvest did, and what the folder has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lensbridge.harvest.manifest import Shard
from lensbridge.viz.numbers import bytes_as_text


@dataclass(frozen=True)
class Report:
    """A run of a harvest.

    Args:
        folder: where the shards are.
        shards: all that are finished, by number, those of earlier runs and other ranks included.
        made: the numbers of those that this run made.
        run_tokens: tokens that this run sent through the model.
        seconds: that this run took.
        interrupted: whether an interrupt ended it.
    """

    folder: Path
    shards: Mapping[int, Shard]
    made: tuple[int, ...]
    run_tokens: int
    seconds: float
    interrupted: bool = False

    @property
    def tokens(self) -> int:
        """Entries in all finished shards: tokens that were kept, or rows that were reduced."""
        return sum(one.tokens for one in self.shards.values())

    @property
    def rows(self) -> int:
        """Rows that were run for all finished shards."""
        return sum(one.rows for one in self.shards.values())

    @property
    def bytes(self) -> int:
        """Of the files of all finished shards."""
        return sum(one.bytes for one in self.shards.values())

    @property
    def count(self) -> int | None:
        """How many shards the harvest has, or None where its end was not reached."""
        last = [number for number, one in self.shards.items() if one.after is None]
        return last[0] + 1 if last else None

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of shards that are not there, up to the last one that is known of."""
        count = self.count or max(self.shards, default=-1) + 1
        return tuple(number for number in range(count) if number not in self.shards)

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return self.count is not None and not self.missing

    @property
    def tokens_per_second(self) -> float:
        """Tokens that this run sent through the model, by the second."""
        return self.run_tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        state = "complete" if self.complete else self._lacking()
        return (
            f"{self.tokens:,} tokens in {len(self.shards)} shards, {bytes_as_text(self.bytes)}, "
            f"{state}: {self.folder}\n"
            f"{len(self.made)} of them made now, {self.run_tokens:,} tokens run in "
            f"{self.seconds:.1f} s ({self.tokens_per_second:,.0f} a second)"
        )

    def _lacking(self) -> str:
        ended = "stopped by an interrupt, " if self.interrupted else ""
        if self.missing:
            first = ", ".join(map(str, self.missing[:3])) + (", ..." if self.missing[3:] else "")
            return f"{ended}not complete (without shard {first})"
        return f"{ended}not complete"

    __repr__ = __str__
