"""A process that harvests a dataset, and one eight times as long, and prints its peak memory."""

import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import lensbridge
from lensbridge import Harvest, Rows

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the system counts."""


def texts(count: int) -> Callable[[], Iterator[str]]:
    """A dataset that is nowhere in memory."""
    return lambda: (f"{i} {TEXT}" for i in range(count))


def peak() -> int:
    """Bytes that this process had at most until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, model = Path(sys.argv[1]), lensbridge.load("demo")
    for times in (1, 8):
        spec = Harvest(
            model,
            texts(120 * times),
            ["pre", "post"],
            layers=[0],
            rows=Rows(64),
            shard_tokens=512,
        )
        report = spec.run(out / str(times))
        told = {"bytes": report.bytes, "shards": len(report.shards), "peak": peak()}
        print(json.dumps({**told, "shard_bytes": spec.plan().shard_bytes}))
