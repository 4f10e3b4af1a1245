"""Ranks that have to do something together say first what they are about to do.

A collective operation that one rank calls alone hangs, and one that is paired with another
operation of the other ranks mixes up tensors. So the ranks meet first, in the key/value store with
which their process group was started. Nothing is gathered there, every backend has one, and
waiting there has an end.
"""

import warnings
from datetime import timedelta
from typing import Any

import torch.distributed as distributed

from lensbridge.errors import RanksError

__all__ = ["agree"]

_SOON = timedelta(seconds=10)
"""How long a rank waits before it says for whom."""

_LONGEST = timedelta(minutes=10)
"""How long it waits at most: transformers starts its process group with a time-out of two hours."""


def agree(what: str, group: Any, advice: str) -> None:
    """Wait until every rank of a group is about to do the same.

    They wait as long as `init_process_group(timeout=...)` says, but not more than ten minutes, and
    tell after ten seconds whom they wait for.

    Args:
        what: what this rank is about to do, after "to": "read blocks.0.attn.W_Q".
        group: a process group, with this rank in it.
        advice: a sentence for the error, on what to do.

    Raises:
        RanksError: another rank is about to do something else, or does not come.
    """
    ranks, me = distributed.get_process_group_ranks(group), distributed.get_rank()
    if len(ranks) < 2:
        return
    meeting = _Meeting(f"lensbridge/{group.group_name}", ranks, me)
    meeting.announce(what)
    try:
        missing = meeting.wait()
    except BaseException:
        meeting.withdraw()
        raise
    if missing:
        meeting.withdraw()
        raise RanksError(
            f"Rank {me} was about to {what}, and {_ranks(missing)} did not come to do the same "
            f"within {meeting.longest.total_seconds():.0f} s. {advice}"
        )
    others = {rank: said for rank, said in meeting.said().items() if said != what}
    if others:
        rank, said = next(iter(others.items()))
        raise RanksError(
            f"Rank {me} is about to {what}, and rank {rank} to {said}: the ranks have to do this "
            f"together. {advice}"
        )


class _Meeting:
    """One of the meetings of a group: each rank leaves a word under a key and reads the others'."""

    def __init__(self, at: str, ranks: list[int], me: int) -> None:
        self.store: Any = distributed.distributed_c10d._get_default_store()
        self.at, self.ranks, self.me = at, ranks, me
        self.number = self.store.add(f"{at}/{me}", 1)

    def announce(self, what: str) -> None:
        """Leave this rank's word."""
        self.store.set(self._key(self.me), what)
        # all who came here have read the words of the meeting before the last
        self.store.delete_key(self._key(self.me, back=2))

    def withdraw(self) -> None:
        """Take this rank's word back, as if it had not come."""
        self.store.delete_key(self._key(self.me))
        self.store.add(f"{self.at}/{self.me}", -1)

    def wait(self) -> list[int]:
        """Wait for the others; the ranks that did not come."""
        whole = self.longest
        missing = self._wait(min(whole, _SOON))
        if missing and whole > _SOON:
            warnings.warn(
                f"Rank {self.me} has waited {_SOON.seconds} s for {_ranks(missing)}, which has to "
                "do what this rank does.",
                RuntimeWarning,
                stacklevel=2,
            )
            missing = self._wait(whole - _SOON)
        return missing

    def _wait(self, time: timedelta) -> list[int]:
        try:
            self.store.wait([self._key(rank) for rank in self.ranks], time)
        except RuntimeError:  # torch's errors of stores are
            return [rank for rank in self.ranks if not self.store.check([self._key(rank)])]
        return []

    def said(self) -> dict[int, str]:
        """The word of each rank."""
        return {rank: self.store.get(self._key(rank)).decode() for rank in self.ranks}

    @property
    def longest(self) -> timedelta:
        """How long the ranks wait for each other."""
        said: timedelta = self.store.timeout
        return min(said, _LONGEST)

    def _key(self, rank: int, back: int = 0) -> str:
        return f"{self.at}/{rank}/{self.number - back}"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
