"""Several clients at once, and clients that leave."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from remote.served import EIFFEL, ROME, TOKEN, Served, served
from serve.site import until

from lensbridge.experiments import LogitDiff
from lensbridge.interventions import Zero
from lensbridge.model import LensModel
from lensbridge.remote import Limits
from lensbridge.remote.packing import packed
from lensbridge.remote.protocol import EVENTS, SAFETENSORS

METRIC = LogitDiff(" Paris", " Rome")
HEADS = [Zero(("z", layer), heads=head) for layer in range(4) for head in range(4)]


@pytest.fixture
def own(model: LensModel) -> Iterator[Served]:
    with served(model, Limits(max_waiting=8, max_begun=2)) as found:
        yield found


def test_eight_clients_at_once(model: LensModel, server: Served) -> None:
    """Each asks for something else, in an order of its own, and gets what the model here gives."""
    torch.manual_seed(0)
    questions: list[Any] = [
        lambda m: m(EIFFEL),
        lambda m: m.run_with_cache(ROME, "resid_post")[1]["resid_post", -1],
        lambda m: m.run_with_interventions(EIFFEL, HEADS[3]),
        lambda m: m.sweep(EIFFEL, HEADS, METRIC).values,
        lambda m: m.gradients(ROME, "z", METRIC).gradients["z", 0],
        lambda m: m.generate(EIFFEL, 5, do_sample=False, return_type="tokens", verbose=False),
    ]
    wanted = [ask(model).detach() for ask in questions]

    def client(number: int) -> int:
        with server.connect() as remote:
            for i in range(4):
                which = (number + i * (1 + number % 5)) % 6
                assert torch.equal(questions[which](remote), wanted[which])
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client, range(8))) == list(range(8))


def test_samples_of_clients_do_not_mix(model: LensModel, own: Served) -> None:
    """Random numbers are those of each client, though their requests take turns."""
    states = [torch.Generator().manual_seed(seed).get_state() for seed in range(3)]
    wanted = []
    for state in states:
        torch.set_rng_state(state)
        wanted.append(model.generate(EIFFEL, 60, stop_at_eos=False, verbose=False))

    def client(state: torch.Tensor) -> str:
        request = packed(
            {"input": EIFFEL, "max_new_tokens": 60, "stop_at_eos": False, "random_state": state}
        )
        with own.connect() as remote:
            return remote._value(remote.connection.ask("generate", request))[0]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(client, states)) == wanted


class Sweeping:
    """A client with a long sweep, in a thread of its own; `leave` makes it leave."""

    def __init__(self, own: Served, cells: int) -> None:
        self.own = own
        self.cells = [HEADS[i % 16] for i in range(cells)]
        self.told: list[tuple[int, int]] = []
        self.left = False
        self.thread = threading.Thread(target=self.ask, daemon=True)
        self.thread.start()

    def ask(self) -> None:
        with self.own.connect() as remote, suppress(KeyboardInterrupt):
            remote.sweep(EIFFEL, self.cells, METRIC, exact=True, progress=self.tell)

    def tell(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if self.left:
            raise KeyboardInterrupt

    def leave(self) -> None:
        self.left = True
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_a_short_request_does_not_wait_for_a_long_one(own: Served) -> None:
    long = Sweeping(own, 80)
    until(lambda: long.told)
    with own.connect() as remote:
        remote(EIFFEL)
        assert long.told[-1][0] < 80
    long.thread.join(60)
    assert long.told[-1] == (80, 80)  # it went on afterwards, to its end


def test_one_client_does_not_fill_the_queue(own: Served) -> None:
    with own.connect() as busy, own.connect() as other, ThreadPoolExecutor(12) as pool:
        found = [pool.submit(busy.sweep, EIFFEL, HEADS, METRIC, exact=True) for _ in range(12)]
        until(lambda: any(one.done() for one in found))
        assert other(EIFFEL).shape == (1, 9, 564)
        errors = [one.exception() for one in found]
    refused = [str(one) for one in errors if one is not None]
    assert 1 <= len(refused) <= 8
    assert all("is busy: " in one and "4 of one client" in one for one in refused)


def desk(own: Served) -> Any:
    return own.app.state.turns


@pytest.mark.parametrize("accept", [SAFETENSORS, EVENTS])
def test_a_client_that_leaves_ends_its_request(own: Served, accept: str) -> None:
    cells = [HEADS[i % 16] for i in range(800)]
    request = packed({"base": EIFFEL, "cells": cells, "metric": METRIC, "exact": True})
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": SAFETENSORS,
        "Accept": accept,
    }
    timeout = httpx.Timeout(10, read=0.5)
    options: Any = {"content": request.to_bytes(), "headers": headers, "timeout": timeout}
    with suppress(httpx.ReadTimeout), httpx.stream("POST", f"{own.url}/v1/sweep", **options) as got:
        assert accept == EVENTS
        assert b"progress" in next(got.iter_bytes())
    until(lambda: not desk(own)._all and desk(own)._holder is None, seconds=4)
    with own.connect() as remote:
        assert remote(EIFFEL).shape == (1, 9, 564)


def test_a_stream_that_is_not_read_to_its_end(own: Served) -> None:
    with own.connect() as remote:
        pieces = remote.stream(EIFFEL, 100, stop_at_eos=False)
        next(pieces)
        pieces.close()
        until(lambda: not desk(own)._all)
        assert remote(EIFFEL).shape == (1, 9, 564)


def test_requests_in_the_queue_can_leave_too(own: Served) -> None:
    begun = [Sweeping(own, 600) for _ in range(2)]  # as many as are begun: others wait
    until(lambda: all(one.told for one in begun))
    with own.connect() as remote:
        waiting = packed({"base": EIFFEL, "cells": HEADS, "metric": METRIC}).to_bytes()
        with pytest.raises(httpx.ReadTimeout):
            remote.connection._http.post(
                "/v1/sweep", content=waiting, timeout=0.2, headers={"Content-Type": SAFETENSORS}
            )
    until(lambda: len(desk(own)._all) == 2)
    for one in begun:
        one.leave()
    until(lambda: not desk(own)._all)


def test_a_client_that_leaves_in_the_middle_of_its_request(
    own: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no fault of the server's, and leaves nothing behind."""
    address = urlsplit(own.url)
    head = (
        f"POST /v1/forward HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: 500\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as line:
        line.sendall(head.encode() + b'{"input":')
        until(lambda: desk(own)._all)
    until(lambda: not desk(own)._all)
    assert not caplog.records
    assert own.post("forward", {"input": EIFFEL}).status_code == 200
