"""A model on a server gives what the model here gives, bit for bit."""

from typing import Any

import pytest
import torch
from remote.served import EIFFEL, ROME
from torch import Tensor

from lensbridge import Experiment
from lensbridge.cache import ActivationCache
from lensbridge.errors import LensbridgeError
from lensbridge.experiments import KL, LogitDiff, LogProb, Loss
from lensbridge.interventions import (
    Add,
    Mean,
    Noise,
    Project,
    Replace,
    Resample,
    Scale,
    Steer,
    Swap,
    Zero,
)
from lensbridge.model import LensModel
from lensbridge.patching import Cell
from lensbridge.remote import RemoteModel
from lensbridge.sweeps.result import PatchingResult

TEXTS = [EIFFEL, "The Galata Tower is in the city of", ROME, "The Colosseum"]
METRIC = LogitDiff(" Paris", " Rome")


def equal(here: Any, there: Any) -> bool:
    """Whether two results are of one type, and equal bit for bit."""
    assert type(here) is type(there), (type(here), type(there))
    if isinstance(here, Tensor):
        return here.dtype == there.dtype and torch.equal(here.detach(), there)
    if isinstance(here, ActivationCache):
        about = ("tokens", "attention_mask", "prepend_bos", "has_batch_dim")
        same = [equal(getattr(here, name), getattr(there, name)) for name in about]
        return all(same) and equal(dict(here), dict(there))
    if isinstance(here, PatchingResult):
        about = ("values", "baseline", "metric_names", "reduced", "grid", "engine", "axis_labels")
        return all(equal(getattr(here, name), getattr(there, name)) for name in about)
    if isinstance(here, dict):
        return list(here) == list(there) and all(equal(here[key], there[key]) for key in here)
    if isinstance(here, tuple | list):
        return len(here) == len(there) and all(map(equal, here, there))
    return bool(here == there)


def seeded(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def interventions(model: LensModel) -> dict[str, Any]:
    """One of every kind, and some with what else an intervention can say."""
    _, cache = model.run_with_cache(TEXTS[:2])
    _, padded = model.run_with_cache(TEXTS)
    basis = torch.linalg.qr(seeded((128, 3))).Q
    return {
        "Replace": Replace(("resid_post", 1), seeded((128,)), positions=2),
        "Replace number": Replace(("z", 2), 0.25, heads=[0, 3], positions=slice(1, 4)),
        "Add": Add(("mlp_out", 2), seeded((128,), 1)),
        "Add half": Add(("mlp_out", 2), seeded((128,), 1).half()),
        "Scale": Scale(("z", 0), 0.5, heads=1),
        "Zero": Zero(("z", 1), heads=[0, 2], positions="last"),
        "Zero subspace": Zero(("resid_pre", 2), subspace=basis),
        "Zero neurons": Zero(("mlp_post", 1), neurons=range(7), positions=[-2, -1]),
        "Zero keys": Zero(("pattern", 1), heads=0, keys=0),
        "Mean": Mean(("attn_out", 1)),
        "Mean of all": Mean(("attn_out", 1), source=padded, over="all"),
        "Resample": Resample(("resid_mid", 1), seed=3),
        "Resample source": Resample(("resid_mid", 1), source=cache, seed=3),
        "Project": Project(("resid_post", 0), seeded((128,), 2)),
        "Project keep": Project(("resid_post", 0), basis, keep=True),
        "Steer": Steer(("resid_post", 2), seeded((128,), 4), strength=3.0, unit="norm"),
        "Swap": Swap(("resid_pre", 1), positions=[[1], [2], [1], [1]]),
        "Swap source": Swap(("resid_pre", 1), source=padded, positions=1, source_positions=2),
        "Noise": Noise(("embed"), 0.3, seed=5, positions=[1, 2]),
    }


NAMES = [
    *("Replace", "Replace number", "Add", "Add half", "Scale", "Zero", "Zero subspace"),
    *("Zero neurons", "Zero keys", "Mean", "Mean of all", "Resample", "Resample source"),
    *("Project", "Project keep", "Steer", "Swap", "Swap source", "Noise"),
]


@pytest.fixture(scope="module")
def every(model: LensModel) -> dict[str, Any]:
    found = interventions(model)
    assert list(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_intervention(
    model: LensModel, remote: RemoteModel, every: dict[str, Any], name: str
) -> None:
    given = every[name]
    here = model.run_with_interventions(TEXTS, [given])
    assert equal(here, remote.run_with_interventions(TEXTS, [given]))
    assert not torch.equal(here, model(TEXTS))


def test_all_kinds_together_in_a_context(
    model: LensModel, remote: RemoteModel, every: dict[str, Any]
) -> None:
    given, points = list(every.values()), ["resid_post", "z"]
    with model.intervene(given[:5]), remote.intervene(given[:5]):
        with model.intervene(given[5:]), remote.intervene(given[5:]):
            assert equal(model.run_with_cache(TEXTS, points), remote.run_with_cache(TEXTS, points))
        assert equal(model(TEXTS), remote(TEXTS))
    assert equal(model(TEXTS), remote(TEXTS))  # it is over


RUNS = {
    "all": {},
    "names": {"names_filter": ["z", ("resid_post", -1), "blocks.*.hook_mlp_out"]},
    "function": {"names_filter": lambda name: name.endswith("pattern")},
    "last": {"names_filter": "resid_pre", "pos_slice": -1},
    "slice": {"names_filter": "q", "pos_slice": slice(1, 4, 2)},
    "list": {"names_filter": "v", "pos_slice": [0, -1], "count": "columns"},
    "dtype": {"names_filter": "resid_mid", "dtype": torch.float16},
    "backward": {"names_filter": "z", "incl_bwd": True, "return_type": "loss"},
    "both": {"names_filter": "embed", "return_type": "both"},
    "none": {"names_filter": "z", "return_type": None},
    "left": {"names_filter": "z", "padding_side": "left"},
    "layers": {"names_filter": ("z", 0), "stop_at_layer": 2},
    "no bos": {"names_filter": "embed", "prepend_bos": False},
}


@pytest.mark.parametrize("name", RUNS)
def test_caches(model: LensModel, remote: RemoteModel, name: str) -> None:
    here = model.run_with_cache(TEXTS, **RUNS[name])
    assert equal(here, remote.run_with_cache(TEXTS, **RUNS[name]))


def test_a_cache_knows_its_run(model: LensModel, remote: RemoteModel) -> None:
    _, here = model.run_with_cache(EIFFEL, remove_batch_dim=True)
    _, there = remote.run_with_cache(EIFFEL, remove_batch_dim=True)
    assert there["resid_post", -1].shape == (9, 128)
    assert there.axes(("q", 1)) == here.axes(("q", 1))
    assert torch.equal(here.last_token("z", 1), there.last_token("z", 1))
    with pytest.raises(LensbridgeError, match="names_filter"):
        remote.run_with_cache(EIFFEL, "z")[1]["q", 0]


INPUTS: dict[str, Any] = {
    "text": EIFFEL,
    "ids": torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]]),
    "row": [0, 5, 6, 7],
    "mapping": {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.ones(1, 3).long()},
    "embeddings": seeded((1, 5, 128)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(model: LensModel, remote: RemoteModel, name: str) -> None:
    assert equal(model(INPUTS[name]), remote(INPUTS[name]))


def test_losses(model: LensModel, remote: RemoteModel) -> None:
    for options in ({"return_type": "loss"}, {"return_type": "loss", "loss_per_token": True}):
        assert equal(model(TEXTS[:2], **options), remote(TEXTS[:2], **options))
    residual = seeded((1, 4, 128))
    assert equal(model(residual, start_at_layer=2), remote(residual, start_at_layer=2))


def cells(model: LensModel) -> dict[str, Any]:
    _, clean = model.run_with_cache(EIFFEL)
    heads = [Zero(("z", layer), heads=head) for layer in range(4) for head in range(4)]
    return {
        "interventions": heads,
        "pairs": [[Zero(("z", 1), heads=h), Zero(("z", 2), heads=h)] for h in range(3)],
        "named": {"a": heads[0], "b": heads[5]},
        "clean": [(("resid_pre", layer), (0, 3), clean) for layer in range(4)],
        "cells": [
            Cell(("z", 1), (slice(None), [1, 2], 3), 0.0),
            Cell(("z", 0), (0, -1), seeded((32,))),
        ],
        "steer": [Steer(("resid_pre", i), seeded((128,)), strength=9.0) for i in range(4)],
        "noise": [Noise(("resid_pre", 1), 0.1, seed=seed) for seed in range(3)],
    }


METRICS: dict[str, Any] = {
    "one": METRIC,
    "several": {"difference": METRIC, "kl": KL(), "loss": Loss(), "p": LogProb(" Paris")},
}


@pytest.mark.parametrize(("metric", "exact"), [("several", None), ("one", True)])
def test_sweeps(model: LensModel, remote: RemoteModel, metric: str, exact: bool | None) -> None:
    for given in cells(model).values():
        options = {"baseline": True, "exact": exact}
        here = model.sweep(EIFFEL, given, METRICS[metric], **options)
        assert equal(here, remote.sweep(EIFFEL, given, METRICS[metric], **options))


def test_a_sweep_keeps_examples_and_tells_how_far_it_is(
    model: LensModel, remote: RemoteModel
) -> None:
    given, metric = [Zero(("z", i)) for i in range(4)], METRIC.reduced("none")
    told: list[tuple[int, int]] = []
    there = remote.sweep(
        TEXTS[:2], given, metric, reduce="none", progress=lambda *one: told.append(one)
    )
    here = model.sweep(TEXTS[:2], given, metric, reduce="none")
    assert equal(here, there)
    assert there.values.shape == (4, 2)
    assert told[-1] == (4, 4)


@pytest.mark.parametrize("of", ["loss", METRIC, KL(seeded((1, 9, 564)))])
def test_gradients(model: LensModel, remote: RemoteModel, of: Any) -> None:
    for options in ({"pos_slice": -1, "dtype": "float64"}, {"return_activations": True}):
        here = model.gradients(EIFFEL, ["z", "resid_pre", "mlp_post"], of, **options)
        assert equal(here, remote.gradients(EIFFEL, ["z", "resid_pre", "mlp_post"], of, **options))
    with model.intervene(Zero(("z", 1))), remote.intervene(Zero(("z", 1))):
        edited = remote.gradients(EIFFEL, ["z"], of)
        assert equal(model.gradients(EIFFEL, ["z"], of), edited)
    assert not torch.equal(edited.gradients["z", 0], here.gradients["z", 0])


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"temperature": 1.5, "top_k": 20},
        {"num_beams": 2, "do_sample": False},
        {"interventions": [Steer(("resid_post", 1), seeded((128,)), strength=20.0)]},
        {"do_sample": False, "return_cache": True, "names_filter": ["z", "resid_post"]},
        {"do_sample": False, "return_type": "tokens"},
    ],
)
def test_generation(model: LensModel, remote: RemoteModel, options: Any) -> None:
    for given in (EIFFEL, TEXTS):
        torch.manual_seed(3)
        here = model.generate(given, 6, verbose=False, **options)
        after = torch.rand(2)
        torch.manual_seed(3)
        assert equal(here, remote.generate(given, 6, **options))
        assert torch.equal(torch.rand(2), after)  # and what is drawn next is the same too


def test_a_stream(model: LensModel, remote: RemoteModel) -> None:
    for options in ({}, {"skip_prompt": False}):
        there = list(remote.stream(EIFFEL, 8, do_sample=False, **options))
        assert there == list(model.stream(EIFFEL, 8, do_sample=False, **options))
    assert len(there) > 2


def test_plans(model: LensModel, remote: RemoteModel) -> None:
    for given in (EIFFEL, (2, 10)):
        here, there = model.plan(given, ["z", "pattern"]), remote.plan(given, ["z", "pattern"])
        assert (here.total, here.by_device, here.result) == (
            there.total,
            there.by_device,
            there.result,
        )
        assert here.bytes == there.bytes
        assert [one.shape for one in here.values.values()] == [
            one.shape for one in there.values.values()
        ]


EXPERIMENT = Experiment(
    TEXTS,
    points=[("resid_post", -1), "z"],
    interventions=[Zero(("z", 1), heads=3), Add(("resid_pre", 2), seeded((128,)))],
    metric={"difference": METRIC, "loss": Loss()},
    sweep=[Zero(("z", 2), heads=head) for head in range(4)],
    gradients=["resid_pre"],
    generate={"max_new_tokens": 4, "do_sample": False},
    pos_slice=slice(0, 2),
    returns=("logits", "loss"),
)


def test_experiments(model: LensModel, remote: RemoteModel) -> None:
    here, there = model.run(EXPERIMENT), remote.run(EXPERIMENT)
    parts = ("logits", "loss", "cache", "metrics", "sweep", "gradients", "tokens", "text", "engine")
    for part in parts:
        assert equal(getattr(here, part), getattr(there, part)), part


def test_text_and_tokens(model: LensModel, remote: RemoteModel) -> None:
    assert equal(model.to_tokens(TEXTS), remote.to_tokens(TEXTS))
    assert equal(
        model.to_tokens(TEXTS, padding_side="left", return_mask=True),
        remote.to_tokens(TEXTS, padding_side="left", return_mask=True),
    )
    ids = model.to_tokens(EIFFEL)
    assert remote.to_string(ids) == model.to_string(ids)
    assert remote.to_str_tokens(EIFFEL) == model.to_str_tokens(EIFFEL)
    assert remote.to_single_token(" Paris") == model.to_single_token(" Paris")
    assert remote.to_single_str_token(9) == model.to_single_str_token(9)
    assert remote.get_token_position(" Tower", EIFFEL) == 3
    assert remote.cfg.n_layers == model.cfg.n_layers
    assert remote.cfg.dtype == model.cfg.dtype
    assert remote.vocabulary.names == tuple(model.vocabulary.names)
