"""A server under a mix of good, bad, huge and cancelled requests: nothing is lost, memory is flat.

python tests/remote/soak.py --seconds 600
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

import lensbridge
from lensbridge.errors import InputError, LensbridgeError, LimitError, RemoteError
from lensbridge.experiments import LogitDiff
from lensbridge.interventions import Add, Zero
from lensbridge.remote import RemoteModel
from lensbridge.remote.message import Message
from lensbridge.remote.packing import packed
from lensbridge.remote.protocol import SAFETENSORS

EIFFEL = "The Eiffel Tower is in the city of"
ROME = "The Colosseum is in the city of"
TOKEN = "a-token-of-a-soak-test"
METRIC = LogitDiff(" Paris", " Rome")
HEADS = [Zero(("z", layer), heads=head) for layer in range(4) for head in range(4)]

GOOD: dict[str, Callable[[Any], Any]] = {
    "forward": lambda m: m(EIFFEL),
    "batch": lambda m: m([EIFFEL, "The Colosseum"]),
    "cache": lambda m: m.run_with_cache(ROME)[1]["resid_post", -1],
    "edit": lambda m: m.run_with_interventions(EIFFEL, [HEADS[3], Add("embed", torch.ones(128))]),
    "sweep": lambda m: m.sweep(EIFFEL, HEADS, METRIC).values,
    "gradients": lambda m: m.gradients(ROME, ["z", "resid_pre"], METRIC).gradients["z", 0],
    "generate": lambda m: m.generate(
        EIFFEL, 6, do_sample=False, return_type="tokens", verbose=False
    ),
    "plan": lambda m: torch.tensor(m.plan((2, 10), "z").total),
}
BAD: dict[str, tuple[type[Exception], Callable[[RemoteModel], Any]]] = {
    "no point": (KeyError, lambda m: m.run_with_cache(EIFFEL, "hook_nothing")),
    "no head": (InputError, lambda m: m.run_with_interventions(EIFFEL, Zero(("z", 1), heads=99))),
    "no token": (InputError, lambda m: m.to_single_token(" Eiffel Tower")),
    "no keyword": (TypeError, lambda m: m._call("forward", input=EIFFEL, nothing=1)),
    "wrong size": (LensbridgeError, lambda m: m.run_with_interventions(EIFFEL, _misfit())),
    "too long": (InputError, lambda m: m("a " * 300)),
}
HUGE: dict[str, tuple[type[Exception], Callable[[RemoteModel], Any]]] = {
    "new tokens": (LimitError, lambda m: m.generate(EIFFEL, 10**6)),
    "cells": (LimitError, lambda m: m.sweep(EIFFEL, HEADS * 1300, METRIC)),
    "batch": (LimitError, lambda m: m(torch.zeros(400, 64).long())),
    "tensors": (LimitError, lambda m: m(torch.zeros(9_000_000).long())),
    "body": (LimitError, lambda m: m.connection.ask("forward", _too_large())),
    "padding": (LimitError, lambda m: m(["a" * 60_000, *["b"] * 20_000])),
}


def _too_large() -> Message:
    return Message({}, {"0": torch.zeros(9_000_000).long()})


def _misfit() -> Add:
    return Add(("z", 1), torch.ones(33))


@dataclass
class Counts:
    """What came of the requests."""

    sent: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, which: str, sort: str) -> None:
        with self.lock:
            getattr(self, which)[sort] += 1


@dataclass
class Client:
    """Someone who asks one thing after the other.

    Args:
        url: of the server.
        wanted: what good requests give.
        counts: shared by all clients.
        seed: of what is asked.
        pause: seconds between two requests.
    """

    url: str
    wanted: dict[str, torch.Tensor]
    counts: Counts
    seed: int
    pause: float

    def run(self, until: float) -> None:
        """Ask until some time."""
        draw = random.Random(self.seed)
        with lensbridge.connect(self.url, TOKEN) as remote:
            while time.monotonic() < until:
                sort = draw.choices(["good", "bad", "huge", "cancelled"], [10, 3, 1, 2])[0]
                self.counts.add("sent", sort)
                try:
                    getattr(self, f"_{sort}")(remote, draw)
                    self.counts.add("done", sort)
                except Exception as error:
                    self.counts.wrong.append(f"{sort}: {type(error).__name__}: {error}"[:300])
                time.sleep(draw.uniform(0, 2 * self.pause))

    def _good(self, remote: RemoteModel, draw: random.Random) -> None:
        name = draw.choice(list(GOOD))
        found = GOOD[name](remote)
        assert torch.equal(found, self.wanted[name]), f"{name} is another tensor"

    def _bad(self, remote: RemoteModel, draw: random.Random) -> None:
        self._refused(BAD, remote, draw)

    def _huge(self, remote: RemoteModel, draw: random.Random) -> None:
        self._refused(HUGE, remote, draw)

    def _refused(self, requests: Any, remote: RemoteModel, draw: random.Random) -> None:
        name = draw.choice(list(requests))
        kind, ask = requests[name]
        try:
            ask(remote)
        except kind:
            return
        raise AssertionError(f"{name} was answered")

    def _cancelled(self, remote: RemoteModel, draw: random.Random) -> None:
        if draw.random() < 0.4:
            pieces = remote.stream(EIFFEL, 100, stop_at_eos=False)
            next(pieces)
            pieces.close()
            return
        request = packed({"base": EIFFEL, "cells": HEADS * 20, "metric": METRIC, "exact": True})
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": SAFETENSORS}
        with suppress(httpx.TimeoutException):
            httpx.post(
                f"{self.url}/v1/sweep",
                content=request.to_bytes(),
                headers=headers,
                timeout=httpx.Timeout(10, read=draw.uniform(0.01, 0.5)),
            )


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and the number of the process."""
    command = [sys.executable, "-m", "lensbridge", "serve", "demo", "--api", "--port", "0"]
    count = str(torch.get_num_threads())  # with another number, sums round otherwise
    given = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "LENSBRIDGE_TOKEN": TOKEN}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **given}
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"The model is at (\S+)", line)
            if found:
                break
        else:
            raise RemoteError("The server did not start.")
        yield found[1], process.pid
        assert process.poll() is None, "the server died"
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def resident(pid: int) -> float:
    """Units: MB of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def soak(seconds: float, clients: int = 6, pause: float = 0.1) -> tuple[Counts, list[float]]:
    """Let clients ask for some time.

    Returns:
        What came of it, and the memory of the server in MB once a second.
    """
    model = lensbridge.load("demo")
    with torch.no_grad():
        wanted = {name: ask(model).detach() for name, ask in GOOD.items()}
    counts, memory = Counts(), []
    with server() as (url, pid):
        end = time.monotonic() + seconds
        several = [Client(url, wanted, counts, seed, pause) for seed in range(clients)]
        threads = [threading.Thread(target=one.run, args=(end,)) for one in several]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(resident(pid))
            time.sleep(1)
        with lensbridge.connect(url, TOKEN) as remote:  # and it still answers
            assert torch.equal(remote(EIFFEL), wanted["forward"])
    return counts, memory


def growth(memory: list[float]) -> float:
    """Units: MB from the second fifth of the time to the last one."""
    fifth = max(1, len(memory) // 5)
    return median(memory[-fifth:]) - median(memory[fifth : 2 * fifth])


def main() -> None:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.1)
    asked = parser.parse_args()
    counts, memory = soak(asked.seconds, asked.clients, asked.pause)
    for sort, sent in counts.sent.items():
        print(f"{sort:10} {sent:6} sent {counts.done[sort]:6} as they should be")
    print(
        f"memory {memory[0]:.0f} MB at first, {max(memory):.0f} MB at most, {memory[-1]:.0f} MB "
        f"at last; {growth(memory):+.1f} MB from the second fifth to the last"
    )
    parts = [memory[len(memory) * i // 10 : len(memory) * (i + 1) // 10] for i in range(10)]
    print("by tenths of the time: " + ", ".join(f"{median(one):.0f}" for one in parts) + " MB")
    print("\n".join(counts.wrong[:20]))
    sys.exit(bool(counts.wrong) or growth(memory) > 20)


if __name__ == "__main__":
    main()
