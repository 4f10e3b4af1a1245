"""A model on Ray Serve with two replicas: the same tensors, whichever replica answers."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
import torch
from remote.soak import BAD, GOOD, HUGE, METRIC

import lensbridge
from lensbridge.engines.serving import RayServe
from lensbridge.errors import InputError, RemoteError
from lensbridge.interventions import Zero
from lensbridge.loading import demo_folder
from lensbridge.model import LensModel
from lensbridge.remote.packing import packed
from lensbridge.remote.protocol import SAFETENSORS

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore"),  # Ray's own warnings
]
EIFFEL = "The Eiffel Tower is in the city of"
TOKEN = "a-token"
SERVED = RayServe(str(demo_folder()), TOKEN, replicas=2, cpus=0.5, name="demo")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two replicas on two CPUs of this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield SERVED.run(port=18765)
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def wanted() -> dict[str, torch.Tensor]:
    model = lensbridge.load("demo")
    torch.set_num_threads(1)
    with torch.no_grad():
        return {name: ask(model).detach() for name, ask in GOOD.items()}


def test_every_operation(url: str, wanted: dict[str, torch.Tensor]) -> None:
    with lensbridge.connect(url, TOKEN) as remote:
        assert "demo" in repr(remote)
        for name, ask in GOOD.items():
            for _ in range(2):
                assert torch.equal(ask(remote), wanted[name]), name
        told: list[Any] = []
        cells = [Zero(("z", i)) for i in range(4)]
        remote.sweep(EIFFEL, cells, METRIC, progress=lambda *one: told.append(one))
        assert told[-1] == (4, 4)
        pieces = list(remote.stream(EIFFEL, 4, do_sample=False))
        assert "".join(pieces) == " Paris."


def test_bad_and_huge_requests(url: str) -> None:
    with lensbridge.connect(url, TOKEN) as remote:
        for kind, ask in [*BAD.values(), *HUGE.values()]:
            with pytest.raises(kind):
                ask(remote)
    with pytest.raises(RemoteError, match="needs its token"):
        lensbridge.connect(url, "wrong")


def test_eight_clients(url: str, wanted: dict[str, torch.Tensor]) -> None:
    def client(number: int) -> bool:
        with lensbridge.connect(url, TOKEN) as remote:
            names = list(GOOD)[number % 3 :: 2]
            return all(torch.equal(GOOD[name](remote), wanted[name]) for name in names)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(8)))


def test_clients_that_leave_give_their_places_back(url: str) -> None:
    """Each replica works on four requests at a time: eight that went on would fill both."""
    cells = [Zero(("z", i % 4), heads=i % 3) for i in range(3000)]
    request = packed({"base": EIFFEL, "cells": cells, "metric": METRIC, "exact": True}).to_bytes()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": SAFETENSORS}

    def leave(number: int) -> None:
        timeout = httpx.Timeout(20, read=1.5)
        with suppress(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/sweep", content=request, headers=headers, timeout=timeout)
            raise AssertionError("it was answered")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(8)))
    with lensbridge.connect(url, TOKEN, timeout=15) as remote:
        assert remote(EIFFEL).shape == (1, 9, 564)


def killed() -> str:
    """Kill a replica; its name."""
    names = ray.util.list_named_actors(all_namespaces=True)
    found = [one for one in names if one["name"].startswith("SERVE_REPLICA")]
    ray.kill(ray.get_actor(**found[0]))
    return str(found[0]["name"])


def test_a_replica_that_dies_is_replaced(url: str, wanted: dict[str, torch.Tensor]) -> None:
    name = killed()
    end, answered = time.monotonic() + 90, 0
    while answered < 6:
        assert time.monotonic() < end
        with suppress(RemoteError), lensbridge.connect(url, TOKEN) as remote:
            assert torch.equal(remote(EIFFEL), wanted["forward"])
            answered += 1
    while True:  # two again, and the one that died is not among them
        names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
        alive = [one for one in names if one.startswith("SERVE_REPLICA")]
        if len(alive) == 2 and name not in alive:
            break
        assert time.monotonic() < end
        time.sleep(0.5)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="replicas"):
        RayServe("demo", TOKEN, replicas=(3, 1))
    with pytest.raises(InputError, match="Without a token everybody"):
        RayServe("demo", "").run(host="0.0.0.0")
    scaled = RayServe("demo", TOKEN, replicas=(1, 3)).settings
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"]["max_replicas"] == 3
    assert RayServe("demo", TOKEN, replicas=(1, 3)).deployment() is not None


def test_models_are_those_of_a_process_here(url: str) -> None:
    model: LensModel = lensbridge.load("demo")
    with lensbridge.connect(url, TOKEN) as remote:
        assert remote.vocabulary.names == tuple(model.vocabulary.names)
