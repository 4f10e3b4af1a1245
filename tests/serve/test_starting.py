"""Starting and ending: what is printed, how long it takes, and what cannot be started."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from lensbridge import serve
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.model import LensModel

LARGE = ("torch", "transformers", "fastapi", "uvicorn", "pydantic", "starlette", "numpy")


def test_importing_it_imports_nothing_large() -> None:
    program = f"import sys, lensbridge.serve; print([m for m in {LARGE} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@contextmanager
def started(call: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process that serves, and the address that it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    program = f"from lensbridge.serve import run; run({call}); print('the end')"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        told = next(line for line in process.stdout if "http" in line)
        found = re.search(r"http://\S+", told)
        assert found is not None
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def answer(address: str) -> httpx.Response:
    """What is answered once the server listens; the address is printed just before."""
    end = time.monotonic() + 20
    while True:
        try:
            return httpx.get(address, timeout=60)
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_it_starts_soon_asks_for_its_token_and_ends_with_ctrl_c() -> None:
    began = time.monotonic()
    with started("'demo', port=0, open_browser=False") as (process, address):
        assert answer(address).status_code == 200
        assert time.monotonic() - began < 60  # most of it is the import of torch
        plain, token = address.split("?token=")
        assert httpx.get(plain).status_code == 403
        assert len(token) >= 20
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert out.splitlines()[-1] == "the end"
        assert "Traceback" not in err
        assert process.returncode == 0


def test_ctrl_c_ends_it_while_a_sweep_runs() -> None:
    call = "'demo', port=0, token='t', open_browser=False"
    with started(call) as (process, address):
        answer(address)
        headers = {"Authorization": "Bearer t"}
        question = {"clean": " a" * 120, "corrupted": " the" * 120, "answer": 5, "wrong": 6}
        url = address.replace("?token=t", "api/comparison")
        with httpx.stream("POST", url, json=question, headers=headers, timeout=60) as response:
            assert '"start"' in next(response.iter_lines())
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 0


def test_a_model_in_training_mode_is_refused(model: LensModel) -> None:
    model.train()
    try:
        with pytest.raises(InputError, match=r"Call model\.eval\(\) first"):
            serve.run(model, port=0, open_browser=False)
    finally:
        model.eval()


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .*port 0 takes a free one"):
            serve.run("demo", port=port, open_browser=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"port": 70000}, "A port is a number from 0 to 65535"),
        ({"host": "no.such.host.invalid"}, "Nothing can listen at no.such.host.invalid"),
        ({"token": "a b"}, "A token is a part of the page's address"),
        ({"token": "é"}, "A token is a part of the page's address"),
        ({"host": "0.0.0.0", "token": ""}, "Without a token everybody"),
    ],
)
def test_what_cannot_be_started(options: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        serve.run("demo", open_browser=False, **options)  # type: ignore[arg-type]


def test_a_notebook_is_told_to_use_a_thread(
    model: LensModel, capsys: pytest.CaptureFixture[str]
) -> None:
    async def cell() -> None:
        serve.run(model, port=0, open_browser=False)

    with pytest.raises(InputError, match=r"threading\.Thread\(target=lensbridge\.serve\.run"):
        asyncio.run(cell())
    options = {"port": 0, "token": "t", "open_browser": False}
    threading.Thread(target=serve.run, args=(model,), kwargs=options, daemon=True).start()
    told = ""
    while "http" not in told:
        told += capsys.readouterr().out
        time.sleep(0.02)
    address = re.findall(r"http://\S+", told)[0]
    assert answer(address).status_code == 200


def test_without_fastapi_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LensbridgeError, match=r"fastapi and uvicorn: pip install 'lensbridge\[ser"):
        serve.run("demo")
