"""Tests whose body runs in several processes at once, as torchrun would start them.

`@on_ranks(2)` makes pytest run the body of a test once on each of two ranks: with the environment
of torchrun, a gloo process group and the same seed. The processes are forked from a server that has
imported what they need, so starting them takes a fraction of a second.
"""

import faulthandler
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as distributed

Test = TypeVar("Test", bound=Callable[..., None])

IMPORTED = (
    *("pytest", "hypothesis", "accelerate", "peft"),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.pipelining"),
    *(f"transformers.models.{one}.modeling_{one}" for one in ("gpt2", "gpt_neox", "llama")),
    *("transformers.models.mistral.modeling_mistral", "transformers.models.qwen2.modeling_qwen2"),
    *("lensbridge.loading", "lensbridge.model", "lensbridge_adapters"),
)
"""What the server imports, so that the processes do not have to; it knows no modules of tests."""

LIMIT = 100.0
"""Seconds for the body of a test, on a busy machine."""


def on_ranks(count: int) -> Callable[[Test], Test]:
    """Run the body of a test in so many processes."""

    def mark(test: Test) -> Test:
        test.ranks = count  # type: ignore[attr-defined]
        return test

    return mark


class Outcome(NamedTuple):
    """What came of one rank: nothing, the word "skipped" with a reason, or a traceback."""

    rank: int
    skipped: str = ""
    failed: str = ""


def run(
    file: Path, name: str, arguments: dict[str, Any], count: int, limit: float = LIMIT
) -> list[Outcome]:
    """What came of each rank, those first that ended first.

    Args:
        file: of the test.
        name: of its function.
        arguments: for it; they have to be picklable.
        count: how many ranks.
        limit: seconds after which those that still run are stopped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(count):
            pipe, other = context.Pipe(duplex=False)
            environment = _as_torchrun(rank, count, store.port)
            stacks = Path(folder) / str(rank)
            job = (file, name, arguments, environment, other, stacks, 0.9 * limit)
            process = context.Process(target=_body, args=job, daemon=True)
            process.start()
            other.close()
            pipes.append(pipe)
            processes.append(process)
        try:
            return _outcomes(pipes, Path(folder), limit)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _as_torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    return {
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK")},
        **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


def _outcomes(pipes: list[Connection], folder: Path, limit: float) -> list[Outcome]:
    found: list[Outcome] = []
    waiting, end = dict(zip(pipes, range(len(pipes)), strict=True)), monotonic() + limit
    while waiting and (left := end - monotonic()) > 0:
        for pipe in wait(list(waiting), timeout=left):
            rank = waiting.pop(pipe)  # type: ignore[arg-type]
            try:
                found.append(pipe.recv())  # type: ignore[union-attr]
            except EOFError:
                found.append(Outcome(rank, failed=f"The process ended. {_stacks(folder, rank)}"))
    late = f"It was still running after {limit:.0f} s.\n"
    stopped = (Outcome(rank, failed=late + _stacks(folder, rank)) for rank in waiting.values())
    return [*found, *stopped]


def _stacks(folder: Path, rank: int) -> str:
    file = folder / str(rank)
    return file.read_text() if file.exists() else ""


def _body(
    file: Path,
    name: str,
    arguments: dict[str, Any],
    environment: dict[str, str],
    pipe: Connection,
    stacks: Path,
    late: float,
) -> None:
    """What runs in the process of a rank."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    torch.set_num_threads(1)
    with stacks.open("w") as said:
        faulthandler.enable(said)
        faulthandler.dump_traceback_later(late, file=said)
        pipe.send(_attempt(rank, file, name, arguments))
        faulthandler.cancel_dump_traceback_later()
    os._exit(0)  # a rank that failed does not wait for the others in the group's destructor


def _attempt(rank: int, file: Path, name: str, arguments: dict[str, Any]) -> Outcome:
    import pytest

    try:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
        torch.manual_seed(0)
        getattr(_loaded(file), name)(**arguments)
        distributed.barrier()
    except pytest.skip.Exception as skipped:
        return Outcome(rank, skipped=str(skipped))
    except BaseException:
        return Outcome(rank, failed=traceback.format_exc())
    return Outcome(rank)


def _loaded(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module
