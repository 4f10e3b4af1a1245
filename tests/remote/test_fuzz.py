"""Requests that nobody would write: each is refused or answered, and the server goes on."""

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from remote.requests import VALID, wrong
from remote.served import EIFFEL, TOKEN, Served, served

from lensbridge.model import LensModel
from lensbridge.remote import Limits
from lensbridge.remote.message import Message
from lensbridge.remote.protocol import JSON, SAFETENSORS

SMALL = Limits(
    max_tokens=256,
    max_new_tokens=8,
    max_cells=16,
    max_body=2**20,
    max_reply=2**22,
    max_tensors=64,
    max_seconds=20,
)
FUZZED = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def small(model: LensModel) -> Iterator[Served]:
    with served(model, SMALL) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def unexplained() -> Iterator[list[str]]:
    """What the server could say no more of than what torch says; there should be nothing."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(f"{record.getMessage()} {record.exc_info}")  # type: ignore[method-assign]
    logging.getLogger("lensbridge.serve").addHandler(handler)
    yield found
    logging.getLogger("lensbridge.serve").removeHandler(handler)


@pytest.fixture(scope="module")
def http(small: Served) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=small.url, headers=headers, timeout=60) as client:
        yield client


def answered(http: httpx.Client, operation: str, body: bytes, kind: str = SAFETENSORS) -> int:
    """The status of a request, never that of a mistake of the server; a refusal says why."""
    response = http.post(f"/v1/{operation}", content=body, headers={"Content-Type": kind})
    assert response.status_code in (200, 400, 404, 413, 422), response.text
    if response.status_code != 200:
        assert response.json()["message"]
    return response.status_code


@pytest.mark.parametrize("operation", VALID)
def test_the_requests_that_are_changed_are_good(http: httpx.Client, operation: str) -> None:
    assert answered(http, operation, VALID[operation].to_bytes()) == 200


@FUZZED
@given(wrong())
def test_documents(http: httpx.Client, request_: tuple[str, Message]) -> None:
    operation, message = request_
    document = message.document if isinstance(message.document, dict) else {"input": None}
    answered(http, operation, Message(document, message.tensors).to_bytes())


@FUZZED
@given(st.sampled_from(list(VALID)), st.binary(max_size=200), st.sampled_from([JSON, SAFETENSORS]))
@example("forward", b"[" * 100_000, JSON)
@example("forward", b'{"input": ' + b"9" * 5000 + b"}", JSON)
@example("forward", b'{"input": 1e999}', JSON)
@example("forward", b'{"input": NaN}', JSON)
@example("forward", b'"text"', JSON)
@example("forward", b"\xff" * 8, SAFETENSORS)
def test_bytes(http: httpx.Client, operation: str, body: bytes, kind: str) -> None:
    assert answered(http, operation, body, kind) in (400, 422)


@FUZZED
@given(st.sampled_from(list(VALID)), st.data())
def test_bytes_of_good_requests(http: httpx.Client, operation: str, data: st.DataObject) -> None:
    body = bytearray(VALID[operation].to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(body) - 1, 400)))
        body[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body))) if data.draw(st.booleans()) else len(body)
    answered(http, operation, bytes(body[:cut]))


HEADERS = [
    {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}},
    {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**15]}},
    {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
    {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}},
    {"a": {"dtype": "F32", "shape": [1] * 60 + [4], "data_offsets": [0, 16]}},
    {"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}},
    {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "code": "x"}},
    {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(65)},
    {"a": [1, 2]},
    {"__metadata__": {"protocol": 1}},
    {"__metadata__": "x"},
    {"__metadata__": {"protocol": "lensbridge.remote/2"}},
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_headers_of_tensors(http: httpx.Client, header: dict[str, object]) -> None:
    """Each says something impossible of sixteen bytes; nothing is allocated for it."""
    about = {"protocol": "lensbridge.remote/1", "document": json.dumps({"input": EIFFEL})}
    text = json.dumps({"__metadata__": about, **header}).encode()
    body = len(text).to_bytes(8, "little") + text + bytes(16)
    assert answered(http, "forward", body) == 400


def test_it_still_answers(unexplained: list[str], model: LensModel, small: Served) -> None:
    with small.connect() as remote:
        assert torch.equal(remote(EIFFEL), model(EIFFEL).detach())
    assert unexplained == []
