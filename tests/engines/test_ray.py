"""Ray with two actors on this machine: the same bytes as alone, whoever dies, or a refusal."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import lensbridge
from lensbridge import Activations, Harvest, Rows
from lensbridge.engines import Ray
from lensbridge.errors import InputError
from lensbridge.loading import demo_folder

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore"),  # Ray's own warnings
]

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
WORDS = TEXT.split(" ")
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + i % 9] * (1 + i % 3)) for i in range(160)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Any:
    """A cluster of two CPUs on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def asked(**settings: Any) -> Harvest:
    rows = Rows(length=16)
    given = {"points": ["blocks.1.hook_resid_post"], "rows": rows, "batch": 3, "shard_tokens": 100}
    return Harvest(**{"model": demo_folder(), "data": TEXTS, **given, **settings})


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every shard; nothing else may lie there but the spec and the manifests."""
    assert not [one for one in folder.iterdir() if one.name.startswith(".")]
    assert all(one.suffix == ".jsonl" for one in (folder / "manifest").iterdir())
    found = sorted(folder.glob("shard-*.safetensors"))
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    asked().run(out)
    return hashes(out)


def test_two_actors_write_the_same_bytes(tmp_path: Path, whole: dict[str, str]) -> None:
    states: list[Any] = []
    report = asked().run(tmp_path, engine=Ray(actors=2), told=states.append)
    assert report.complete
    assert hashes(tmp_path) == whole
    assert len(list((tmp_path / "manifest").glob("ray-*.jsonl"))) == 2
    assert sorted(one.shard for one in states) == list(range(len(whole)))
    assert states[-1].tokens == report.run_tokens
    assert asked().run(tmp_path, engine=Ray(actors=2), resume=True).made == ()


def test_a_loaded_model_goes_to_the_actors(tmp_path: Path, whole: dict[str, str]) -> None:
    asked(model=lensbridge.load(demo_folder())).run(tmp_path, engine=Ray(actors=1))
    assert hashes(tmp_path) == whole


def test_an_actor_that_is_killed_is_started_again(tmp_path: Path, whole: dict[str, str]) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            locks = list((tmp_path / "manifest").glob("ray-*.lock"))
            if locks and list(tmp_path.glob("shard-*")):
                killed.append(int(locks[0].stem.rpartition("-")[2]))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    report = asked().run(tmp_path, engine=Ray(actors=1))
    thread.join(60)
    assert killed
    assert report.complete
    assert hashes(tmp_path) == whole


def test_less_than_nothing_is_refused() -> None:
    for wrong in ({"actors": 0}, {"gpus": -1}, {"cpus": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Ray(**wrong)


def test_a_cluster_without_room_is_refused(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"no room: 2 actors.* 2\.8 CPU and has 2 free"):
        asked().run(tmp_path, engine=Ray(actors=2, cpus=0.9, timeout=1))
    with pytest.raises(InputError, match="1 GPU and has 0 free"):
        asked().run(tmp_path / "gpus", engine=Ray(actors=1, gpus=1, timeout=1))
    assert time.monotonic() - began < 20
    assert not list(tmp_path.glob("shard-*"))


def test_a_document_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Document 160 is 3\.5"):
        asked(data=[*TEXTS, 3.5]).run(tmp_path, engine=Ray(actors=1))


def test_a_driver_that_is_killed_loses_nothing(tmp_path: Path, whole: dict[str, str]) -> None:
    spec = asked(data=str(tmp_path / "texts.txt"))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    out = tmp_path / "out"
    code = (
        "import sys, lensbridge; from lensbridge.engines import Ray; import ray\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "spec = lensbridge.Harvest.from_json(open(sys.argv[1]).read())\n"
        "spec.run(sys.argv[2], engine=Ray(actors=1))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, tmp_path / "spec.json", out])
    end = time.monotonic() + 120
    while not list(out.glob("shard-*")) and time.monotonic() < end:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    wait_for_the_actors(out)
    spec.run(out, resume=True)
    assert hashes(out) == whole
    assert len(Activations(out, check=True).stored) == len(whole)


def wait_for_the_actors(out: Path) -> None:
    """Ray ends the actors of a dead driver; until then they may still write."""
    from lensbridge.harvest.locks import is_held

    end = time.monotonic() + 60
    while any(is_held(one) for one in (out / "manifest").glob("*.lock")):
        assert time.monotonic() < end
        time.sleep(0.1)
