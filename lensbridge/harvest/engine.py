"""Engine: who computes which shard, and how far a run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lensbridge.harvest.folder import Folder
from lensbridge.harvest.job import Job


@dataclass(frozen=True)
class State:
    """How far a run is.

    Args:
        shard: the number of the shard under way.
        tokens: tokens that this process has run.
        share: of the data that was read, from 0 to 1, or None where that is not known.
        bytes: bytes that this process has written.
        seconds: since the run began.
    """

    shard: int
    tokens: int
    share: float | None
    bytes: int
    seconds: float


Told = Callable[[State], None]
"""Takes the state of a run after each batch."""


class Engine(Protocol):
    """Decides who computes which shard."""

    def run(self, job: Job, folder: Folder, told: Told | None) -> None:
        """Compute the shards that the folder does not have."""
