"""Traces in NDIF's own sandbox: its runner, which has no weights, drives the model over a socket.

NDIF runs the code of users that it does not trust so. Its package is installed without what its
servers need (Ray, Redis, CUDA); the two halves of the sandbox do without.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import lensbridge
from lensbridge import Experiment
from lensbridge.engines import NNsight
from lensbridge.errors import UnsupportedError
from lensbridge.experiments import KL, LogitDiff
from lensbridge.interventions import Add, Resample, Scale, Swap, Zero

pytest.importorskip("ndif")
pytestmark = pytest.mark.peers

TEXTS = ["The Eiffel Tower is in the city of", "The Tower is in"]
METRIC = LogitDiff(" Paris", " Rome")
HEADS = [Zero(("z", layer), heads=head) for layer in range(2) for head in range(4)]
EXPERIMENTS = {
    "reads": Experiment(TEXTS, points="blocks.1.*", metric={"logits": METRIC, "kl": KL()}),
    "edits of a head": Experiment(TEXTS, interventions=[Zero(("z", 1), heads=3, positions="last")]),
    "edits of an input of a head": Experiment(TEXTS, interventions=[Scale(("q_input", 1), 1.5)]),
    "edits of an input of a branch": Experiment(TEXTS, interventions=[Scale(("mlp_in", 1), 1.5)]),
    "values of other examples": Experiment(
        TEXTS, interventions=[Resample(("resid_pre", 2)), Swap(("z", 0), positions="last")]
    ),
    "edits of logits": Experiment(TEXTS, interventions=[Add("hook_logits", 1.0, neurons=[3])]),
    "a sweep": Experiment(TEXTS, sweep=HEADS, metric=METRIC),
    "generation": Experiment(
        TEXTS,
        interventions=[Add(("mlp_out", 1), 0.1, when="decode")],
        generate={"max_new_tokens": 3, "do_sample": False},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without lensbridge."""
    lens, path = lensbridge.load("demo"), tmp_path_factory.mktemp("model")
    lens.hf_model.save_pretrained(path)
    lens.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The server's model."""
    from nnsight.modeling.transformers import TransformersModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = TransformersModel(
        str(folder), task="text-generation", tokenizer=tokenizer, dispatch=True
    )
    found._module.requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[Path]:
    """NDIF's process for code of users."""
    socket = folder / "socket"
    about = {"repo_id": str(folder), "revision": None, "task": "text-generation"}
    key = f"nnsight.modeling.transformers.TransformersModel:{json.dumps(about)}"
    command = ["-m", "ndif.services.ray.sandbox.runner", str(socket), "1", key]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield socket
    finally:
        process.terminate()
        process.wait()


def connected(socket: Path) -> Any:
    from ndif.services.ray.sandbox.host import Connection

    until = time.monotonic() + 90
    while True:
        try:
            return Connection.open(str(socket), 60)
        except OSError:
            assert time.monotonic() < until, "the runner did not start"
            time.sleep(0.2)


def answer(model: Any, socket: Path, request: bytes) -> list[Tensor]:
    """The values that come back for a request."""
    from ndif.services.ray.sandbox.driver import SandboxDriver

    connection = connected(socket)
    try:
        about = {"attn_implementation": model.attn_implementation}
        connection.send((request, False, "float32", None, about))
        data, _ = SandboxDriver(model, torch.float32).pump(connection)
    finally:
        connection.close()
    told = torch.load(io.BytesIO(data), weights_only=False)
    return [value for one in told.get("results") or [told["result"]] for value in one.values()]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What would be sent."""
    from nnsight.intervention.backends.local import LocalSimulationBackend
    from nnsight.schema.request import RequestModel

    sent: list[bytes] = []
    native = LocalSimulationBackend.__call__

    def keep(self: Any, tracer: Any) -> Any:
        sent.append(RequestModel.serialize(tracer))
        return native(self, tracer)

    monkeypatch.setattr(LocalSimulationBackend, "__call__", keep)
    return sent


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_sandbox_gives_what_a_lens_gives(
    name: str, model: Any, runner: Path, folder: Path, requests: list[bytes]
) -> None:
    experiment = EXPERIMENTS[name]
    assert NNsight(str(folder), remote=True).code(experiment)  # is not refused
    expected = NNsight(str(folder), remote="local").run(experiment)
    with torch.no_grad():
        values = answer(model, runner, requests[0])
    wanted = [expected.logits if expected.tokens is None else expected.tokens]
    wanted += [] if expected.cache is None else list(expected.cache.values())
    wanted += [] if expected.sweep is None else list(expected.sweep.values)
    wanted += list(expected.metrics.values())
    for one in wanted:
        assert any(value.shape == one.shape and torch.equal(value, one) for value in values)


def test_an_edit_that_the_sandbox_loses_is_refused(
    model: Any, runner: Path, folder: Path, requests: list[bytes]
) -> None:
    experiment = Experiment(TEXTS, interventions=[Scale(("resid_mid", 1), 2.0)])
    expected = NNsight(str(folder), remote="local").run(experiment)
    with torch.no_grad():
        values = answer(model, runner, requests[0])
    assert not any(torch.equal(one, expected.logits) for one in values)
    with pytest.raises(UnsupportedError, match="hands a trace a copy"):
        NNsight(str(folder), remote=True).run(experiment)
