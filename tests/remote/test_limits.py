"""What is larger than a server allows is refused with the numbers, before the model runs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from remote.served import EIFFEL, TOKEN, Served, served

import lensbridge
from lensbridge import Experiment
from lensbridge.errors import InputError, LensbridgeError, LimitError, RemoteError, UnsupportedError
from lensbridge.experiments import LogitDiff, Loss
from lensbridge.interventions import Add, Zero
from lensbridge.model import LensModel
from lensbridge.patching import Cell
from lensbridge.remote import Limits, RemoteModel

METRIC = LogitDiff(" Paris", " Rome")
HEADS = [Zero(("z", layer), heads=head) for layer in range(4) for head in range(4)]
SMALL = Limits(
    max_tokens=40,
    max_new_tokens=8,
    max_cells=12,
    max_sweep_tokens=100,
    max_body=200_000,
    max_reply=300_000,
    max_run=3_000_000,
    max_tensors=8,
)


@pytest.fixture(scope="module")
def small(model: LensModel) -> Iterator[RemoteModel]:
    with served(model, SMALL) as server, server.connect() as found:
        yield found


@pytest.fixture
def runs(model: LensModel) -> Iterator[list[int]]:
    """Grows whenever the model is run."""
    found: list[int] = []
    handle = model.hf_model.register_forward_pre_hook(lambda *given: found.append(1))
    yield found
    handle.remove()


LONG = " ".join([EIFFEL] * 3)
REFUSED: dict[str, Any] = {
    "tokens": (lambda r: r([EIFFEL] * 5), r"has 45 tokens \(5 rows of 9.* allows 40"),
    "padding": (lambda r: r([LONG, "The", "The"]), r"has \d+ tokens \(3 rows of .*allows 40"),
    "ids": (lambda r: r(torch.zeros(2, 30).long()), r"60 tokens \(2 rows of 30"),
    "embeddings": (lambda r: r(torch.zeros(1, 41, 128)), "41 tokens"),
    "residual": (lambda r: r(torch.zeros(5, 9, 128), start_at_layer=1), "45 tokens"),
    "one long text in many": (lambda r: r(["x" * 9000, *["y"] * 999]), "1000 texts has 9000"),
    "one long chat in many": (
        lambda r: r([[{"role": "user", "content": text}] for text in ("x" * 9000, *["y"] * 999)]),
        "1000 texts has 9004",
    ),
    "new tokens": (lambda r: r.generate(EIFFEL, 9), "max_new_tokens=9, and the server allows 8"),
    "beams": (lambda r: r.generate(EIFFEL, 8, num_beams=4, do_sample=False), "68 tokens"),
    "cells": (lambda r: r.sweep(EIFFEL, HEADS, METRIC), "has 16 cells, and the server allows 12"),
    "cells and tokens": (
        lambda r: r.sweep(EIFFEL, HEADS[:12], METRIC),
        "12 cells of 9 tokens, 108 in all, and the server allows 100",
    ),
    "reply": (
        lambda r: r.run_with_cache(EIFFEL),
        r"plan .* kB would come back.*300 kB",
    ),
    "gradients": (lambda r: r.gradients(EIFFEL, None), "would come back"),
    "generated cache": (
        lambda r: r.generate(EIFFEL, 8, do_sample=False, return_cache=True),
        "would come back",
    ),
    "body": (
        lambda r: r(torch.zeros(30_000).long()),
        "240000 bytes of tensors.* reads 200000",
    ),
    "tensors": (
        lambda r: r.run_with_interventions(
            EIFFEL, [Add(("z", 1), torch.full((32,), float(i))) for i in range(9)]
        ),
        "hold 9 tensors; 8 are read",
    ),
    "experiment": (lambda r: r.run(Experiment([EIFFEL] * 5)), "45 tokens"),
    "experiment's sweep": (
        lambda r: r.run(Experiment(EIFFEL, metric=METRIC, sweep=HEADS)),
        "16 cells",
    ),
    "experiment's text": (
        lambda r: r.run(Experiment(EIFFEL, generate={"max_new_tokens": 9})),
        "max_new_tokens=9",
    ),
    "experiment's points": (lambda r: r.run(Experiment(EIFFEL, points="*")), "would come back"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_too_much_is_refused_before_it_runs(small: RemoteModel, runs: list[int], what: str) -> None:
    ask, message = REFUSED[what]
    kind = RemoteError if what == "tensors" else LimitError
    with pytest.raises(kind, match=message):
        ask(small)
    assert not runs


def test_bytes_that_are_too_many(model: LensModel) -> None:
    """The answer comes also to a client that sends all of them without looking."""
    with served(model, SMALL) as server:
        for size in (200_001, 700_000):
            reply = server.post("forward", content=bytes(size))
            assert reply.status_code == 413
            assert f"has {size} bytes, and 200000 bytes are read" in reply.json()["message"]
        many = server.post("forward", content=(bytes(50_000) for _ in range(10)))  # in chunks
        assert many.status_code == 413
        assert server.post("forward", content=bytes(200_000)).status_code == 400


@pytest.mark.parametrize("name", ["custom_generate", "trust_remote_code", "assistant_model"])
def test_no_code_is_loaded(server: Served, runs: list[int], name: str) -> None:
    """transformers loads code from the hub for some options of generate: none of them is taken."""
    experiment = Experiment(EIFFEL, generate={name: "owner/code"})
    with server.connect() as remote:
        with pytest.raises(TypeError, match=f"takes no '{name}'"):
            remote.run(experiment)
        with pytest.raises(TypeError, match=f"takes no '{name}'"):
            remote.generate(EIFFEL, **{name: "owner/code"})
    reply = server.post("generate", {"input": EIFFEL, name: "owner/code"})
    assert reply.status_code == 422
    assert not runs


def test_what_is_held_while_it_runs(model: LensModel) -> None:
    message = r"be held while it runs, and the server allows 100 kB"
    with (
        served(model, Limits(max_run=100_000)) as server,
        server.connect() as remote,
        pytest.raises(LimitError, match=message),
    ):
        remote(EIFFEL)


def test_a_request_that_takes_too_long_ends(model: LensModel) -> None:
    with served(model, Limits(max_seconds=1)) as server, server.connect() as remote:
        cells = HEADS * 200
        with pytest.raises(LimitError, match=r"has run for . seconds, and the server allows 1"):
            remote.sweep(EIFFEL, cells, METRIC, exact=True)
        assert remote(EIFFEL).shape == (1, 9, 564)


HERE: dict[str, Any] = {
    "hooks": lambda r: r.run_with_hooks(EIFFEL, fwd_hooks=[("blocks.1.hook_resid_pre", print)]),
    "hook": lambda r: r.add_hook("blocks.1.hook_resid_pre", print),
    "intervention": lambda r: r.run_with_interventions(EIFFEL, [lambda value: value]),
    "fwd_hooks": lambda r: r.run_with_interventions(EIFFEL, HEADS[0], fwd_hooks=[]),
    "setter": lambda r: r.sweep(EIFFEL, [Cell(("z", 1), 0, 0.0, print)], METRIC),
    "processor": lambda r: r.generate(EIFFEL, logits_processor=[print]),
    "objective of activations": lambda r: r.gradients(EIFFEL, "z", "loss", at="z"),
}


@pytest.mark.parametrize("what", HERE)
def test_functions_are_refused(remote: RemoteModel, runs: list[int], what: str) -> None:
    with pytest.raises(LensbridgeError, match="a function would have to run on the server"):
        HERE[what](remote)
    assert not runs


def test_functions_of_logits_are_refused(remote: RemoteModel) -> None:
    for ask in (
        lambda: remote.sweep(EIFFEL, HEADS, lambda logits: logits[0, 0, 0]),
        lambda: remote.gradients(EIFFEL, "z", lambda logits: logits[0, 0, 0]),
    ):
        with pytest.raises(UnsupportedError, match=r"metric that is a function.*LogitDiff"):
            ask()


def test_mistakes_are_those_of_a_model_here(model: LensModel, remote: RemoteModel) -> None:
    mistakes: list[Any] = [
        lambda m: m.run_with_cache(EIFFEL, "hook_zz"),
        lambda m: m.run_with_interventions(EIFFEL, Zero(("z", 1), heads=9)),
        lambda m: m(EIFFEL, return_type="loss", stop_at_layer=9),
        lambda m: m.to_single_token(" Eiffel Tower"),
        lambda m: m("a " * 200),
        lambda m: m.gradients(EIFFEL, []),
        lambda m: m.sweep(EIFFEL, [], METRIC),
        lambda m: m.sweep(EIFFEL, [Zero("z")], LogitDiff(" Paris", " Nowhere at all")),
    ]
    for ask in mistakes:
        with pytest.raises((LensbridgeError, TypeError)) as here:
            ask(model)
        with pytest.raises(type(here.value)) as there:
            ask(remote)
        assert str(there.value)[:40] == str(here.value)[:40]


def test_what_a_server_does_not_have(remote: RemoteModel) -> None:
    with pytest.raises(UnsupportedError, match="no W_O: its weights and modules stay there"):
        _ = remote.W_O
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = remote.nothing
    with pytest.raises(TypeError, match="takes no 'nmes_filter'"):
        remote.run_with_cache(EIFFEL, nmes_filter="z")
    with pytest.raises(InputError, match="padding_side is one of 'left', 'right' and None"):
        remote(EIFFEL, padding_side="top")
    with pytest.raises(InputError, match="is no intervention"):
        remote.run_with_interventions(EIFFEL, ["z"])
    assert remote(EIFFEL, return_type="loss").item() == pytest.approx(
        remote.run(Experiment(EIFFEL, metric=Loss())).metric.item(), abs=1e-6
    )


def test_who_is_answered(model: LensModel, server: Served) -> None:
    with pytest.raises(RemoteError, match="needs its token"):
        lensbridge.connect(server.url)
    with pytest.raises(RemoteError, match="needs its token"):
        lensbridge.connect(server.url, "wrong")
    with pytest.raises(RemoteError, match=r"cannot be reached.*lensbridge serve MODEL --api"):
        lensbridge.connect("http://127.0.0.1:9")
    with pytest.raises(InputError, match="address is such as"):
        lensbridge.connect("127.0.0.1:8765")
    for token in ("clé", "two\nlines"):
        with pytest.raises(InputError, match="ASCII"):
            lensbridge.connect(server.url, token)
    good = {"input": EIFFEL}
    assert server.post("forward", good).status_code == 200
    assert server.post("forward", good, headers={"Authorization": "Basic x"}).status_code == 403
    assert server.post("forward", good, headers={"Origin": "http://evil"}).status_code == 403
    assert server.post("forward", good, headers={"Host": "evil.example"}).status_code == 421
    assert server.post("forward", good, headers={"Content-Type": "text/plain"}).status_code == 415
    assert server.post("pickle", good).status_code == 404
    assert TOKEN not in server.post("forward", good, headers={"Authorization": ""}).text


def test_a_token_is_needed_where_others_reach_it() -> None:
    with pytest.raises(InputError, match=r"Without a token everybody who reaches 0\.0\.0\.0"):
        lensbridge.serve.run("demo", host="0.0.0.0", port=0, token="", api=True)


def test_a_server_of_something_else(model: LensModel) -> None:
    from remote.served import serving_app

    from lensbridge.serve import make_app

    with serving_app(make_app(model)) as url, pytest.raises(RemoteError, match="status 404"):
        lensbridge.connect(url)
