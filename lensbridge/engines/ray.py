"""Ray: shards computed by actors of a Ray cluster, each with a model of its own.

A dataset of shard numbers goes through `map_batches`. The actors write the activations themselves,
to a folder that all of them can reach; only numbers and lines of manifests pass between processes.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

import torch

from lensbridge.errors import InputError
from lensbridge.harvest.computing import Computer
from lensbridge.harvest.engine import State, Told
from lensbridge.harvest.folder import Folder, Writer
from lensbridge.harvest.job import Job
from lensbridge.harvest.manifest import Shard
from lensbridge.harvest.packing import Cut
from lensbridge.harvest.running import about, known_shards

_READING = 1.0
"""CPUs that Ray's own tasks need, which hand out the numbers of shards."""

_AT_ONCE = 4
"""Shards that an actor is given at a time, at most."""


@dataclass(frozen=True)
class Ray:
    """Computes shards with a pool of actors of Ray, which restarts those that die.

    Args:
        actors: how many; each loads the model.
        gpus: of each actor.
        cpus: of each actor. None: an equal share of the cluster's, less one that Ray needs.
        timeout: seconds in which the cluster must have room for all actors, after it started.
        address: of the cluster. None: the one that this process is connected to, or a new one on
            this machine.

    Raises:
        InputError: a number that is too small.
    """

    actors: int = 1
    gpus: float = 0
    cpus: float | None = None
    timeout: float = 20.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise InputError(f"actors={self.actors} is too small: it is 1 or more.")
        if self.gpus < 0 or (self.cpus is not None and self.cpus <= 0):
            raise InputError(
                f"gpus={self.gpus} and cpus={self.cpus}: GPUs are 0 or more, CPUs more than 0."
            )

    def run(self, job: Job, folder: Folder, told: Told | None) -> None:
        """Compute the shards that the folder does not have.

        Raises:
            InputError: Ray is not installed, the cluster has no room, or a shard failed.
        """
        ray = _ray()
        rows = job.shard_rows()
        there = known_shards(folder, rows)
        cuts = {n: cut for n, cut in rows.all_cuts().items() if n not in there}
        rows.require_some()
        if not cuts:
            return
        began_here = not ray.is_initialized()
        if began_here:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
        context = ray.data.DataContext.get_current()
        shown, context.enable_progress_bars = context.enable_progress_bars, False
        try:
            cpus = self._room(ray)
            self._compute(ray, job, folder, cuts, cpus, told)
        finally:
            context.enable_progress_bars = shown
            if began_here:
                ray.shutdown()
            folder.clean()

    def _room(self, ray: Any) -> float:
        """The CPUs of each actor, once the cluster has room for all of them.

        Raises:
            InputError: it has none within the time.
        """
        end = time.monotonic() + self.timeout
        while True:
            there = ray.available_resources()
            cpus = self.cpus or _share(there.get("CPU", 0.0), self.actors)
            wanted = {"CPU": self.actors * cpus + _READING, "GPU": self.actors * self.gpus}
            lacking = [name for name, one in wanted.items() if one > there.get(name, 0.0)]
            if not lacking and cpus > 0:
                return cpus
            if time.monotonic() > end:
                names = lacking or ["CPU"]
                told = ", ".join(
                    f"{wanted[name]:g} {name} and has {there.get(name, 0.0):g} free"
                    for name in names
                )
                raise InputError(
                    f"The cluster has no room: {self.actors} actors, and Ray's own tasks with "
                    f"{_READING:g} CPU, need {told}. Ask for fewer actors or less of each "
                    "(Ray(actors=..., cpus=..., gpus=...)), or add machines."
                )
            time.sleep(0.2)

    def _compute(
        self,
        ray: Any,
        job: Job,
        folder: Folder,
        cuts: Mapping[int, Cut],
        cpus: float,
        told: Told | None,
    ) -> None:
        shared = ray.put((job.spec, folder.path, torch.get_num_threads()))
        items = [
            {"number": number, "cut": json.dumps(cut.to_dict())} for number, cut in cuts.items()
        ]
        size = max(1, min(_AT_ONCE, len(items) // (4 * self.actors)))
        lines = ray.data.from_items(items).map_batches(
            ShardActor,
            fn_constructor_args=(shared,),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_cpus=cpus,
            num_gpus=self.gpus,
        )
        began, tokens, written = time.monotonic(), 0, 0
        try:
            for line in lines.iter_rows():
                tokens, written = tokens + int(line["run"]), written + int(line["bytes"])
                if told is not None:
                    seconds = time.monotonic() - began
                    told(State(int(line["number"]), tokens, None, written, seconds))
        except ray.exceptions.RayError as error:
            raise InputError(f"A shard could not be computed: {error}") from error


class ShardActor:
    """What an actor does: it loads the model once, and computes the shards that it is given.

    Args:
        shared: the harvest, the folder, and the threads of PyTorch, or a reference to them.
    """

    def __init__(self, shared: Any) -> None:
        spec, path, threads = _ray().get(shared) if hasattr(shared, "task_id") else shared
        torch.set_num_threads(threads)
        self._job = Job.of(spec)
        self._rows = self._job.shard_rows()
        self._computer = Computer(self._job)
        self._folder = Folder(path)
        self._name = f"ray-{socket.gethostname()}-{os.getpid()}"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Compute and write some shards; what their manifests say comes back."""
        with self._folder.writing(self._name) as writer:
            lines = [
                self._shard(writer, int(number), Cut.from_dict(json.loads(str(cut))))
                for number, cut in zip(batch["number"], batch["cut"], strict=True)
            ]
        return {
            "number": [one.number for one in lines],
            "run": [one.run for one in lines],
            "bytes": [one.bytes for one in lines],
        }

    def _shard(self, writer: Writer, number: int, cut: Cut) -> Shard:
        self._rows.know(number, cut)
        rows = self._rows.rows(number)
        tensors = self._computer.compute(rows)
        return writer.write(number, tensors, about(self._rows, number, rows, tensors))


def _share(cpus: float, actors: int) -> float:
    """The CPUs of each actor, of so many that are free; whole ones where it is more than one."""
    share = (cpus - _READING) / actors
    return float(floor(share)) if share >= 1 else floor(share * 100) / 100


def _ray() -> Any:
    """The module `ray`, with `ray.data`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("This engine needs Ray: pip install 'lensbridge[ray]'.") from error
    return ray
