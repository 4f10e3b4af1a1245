"""Harvests under torchrun, and killed at thirty random moments."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lensbridge
from lensbridge import Activations, Harvest, Rows

pytestmark = pytest.mark.ranks

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
WORDS = TEXT.split(" ")
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + i % 9] * (1 + i % 3)) for i in range(120)]


def asked(folder: Path) -> Harvest:
    """A harvest of some twenty shards, with its files in a folder."""
    data = folder / "texts.txt"
    data.write_text("\n".join(TEXTS), encoding="utf-8")
    spec = Harvest(
        "demo", str(data), ["blocks.1.hook_resid_post"], rows=Rows(16), batch=3, shard_tokens=80
    )
    (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    return spec


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every shard; no unfinished file may lie beside them."""
    assert not [one for one in folder.iterdir() if one.name.startswith(".")]
    assert all(one.suffix == ".jsonl" for one in (folder / "manifest").iterdir())
    found = sorted(folder.glob("shard-*.safetensors"))
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in found}


def launched(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    """Two ranks of `lensbridge harvest` under torchrun, each with one thread, as the tests have."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = ["-m", "lensbridge", "harvest", str(folder / "spec.json"), str(out)]
    return subprocess.Popen(
        [sys.executable, *command, *told], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_two_ranks_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    spec = asked(tmp_path)
    spec.run(tmp_path / "alone")
    assert launched(tmp_path, tmp_path / "ranks").wait(240) == 0
    assert hashes(tmp_path / "ranks") == hashes(tmp_path / "alone")
    names = sorted(one.name for one in (tmp_path / "ranks" / "manifest").iterdir())
    assert names == ["rank-00000.jsonl", "rank-00001.jsonl"]


def test_a_rank_that_is_killed_loses_nothing_finished(tmp_path: Path) -> None:
    spec, out = asked(tmp_path), tmp_path / "ranks"
    spec.run(tmp_path / "alone")
    launcher, end = launched(tmp_path, out), time.monotonic() + 200
    lock = out / "manifest" / "rank-00001.lock"
    while not lock.exists() and launcher.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    for child in children(launcher.pid)[-1:]:
        os.kill(child, signal.SIGKILL)
    launcher.wait(200)
    spec.run(out, resume=True)
    assert hashes(out) == hashes(tmp_path / "alone")
    assert len(Activations(out, check=True).stored) == len(hashes(out))


def children(parent: int) -> list[int]:
    """The processes that a process started, the youngest last."""
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(one) for one in found.read_text().split()] if found.exists() else []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_thirty_kills_at_random_moments(tmp_path: Path) -> None:
    spec, out, model = asked(tmp_path), tmp_path / "out", lensbridge.load("demo")
    began = time.monotonic()
    spec.run(tmp_path / "alone")
    took, draw = time.monotonic() - began, random.Random(0)
    for _ in range(30):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            Harvest(model, spec.data, spec.points, rows=spec.rows, batch=3, shard_tokens=80).run(
                out, resume=True
            )
            os._exit(0)
        time.sleep(draw.uniform(0, took / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert spec.run(out, resume=True).complete
    assert hashes(out) == hashes(tmp_path / "alone")
