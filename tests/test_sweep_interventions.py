"""Sweeps inside `model.intervene`: batches where each row is edited by itself, as one by one.

The oracle is the bare model with both edits as plain PyTorch hooks, and `exact=True`, which runs
the cells one by one.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from described import of_class
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge import patching as P
from lensbridge.interventions import (
    Add,
    Intervention,
    Mean,
    Noise,
    Project,
    Resample,
    Scale,
    Steer,
    Swap,
    Zero,
)
from lensbridge.interventions.kinds import Replace as ReplaceKind
from lensbridge.patching import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = slice(None)
LENGTH = 6


def metric(logits: Tensor) -> Tensor:
    """Reads every position and is not linear."""
    return logits.pow(2).mean((1, 2))


def last(logits: Tensor) -> Tensor:
    return logits[:, -1].pow(2).mean(-1)


def early(logits: Tensor) -> Tensor:
    return logits[:, 2].pow(2).mean(-1)


def sweep_cells(layers: int) -> list[Cell]:
    return [
        Cell((point, layer), (ALL, pos), 0.25)
        for point in ("resid_pre", "attn_out", "mlp_out", "z", "post")
        for layer in range(layers)
        for pos in range(LENGTH)
    ]


def vector(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(model: lensbridge.LensModel) -> Tensor:
    return vector(model.cfg.d_model)


DECLARED: dict[str, Callable[[Any], list[Intervention]]] = {
    "steering where rows start": lambda model: [Steer(("resid_pre", 1), vectors(model))],
    "steering everywhere": lambda model: [Steer("resid_post", vectors(model))],
    "the first stream": lambda model: [Add(("resid_pre", 0), vectors(model))],
    "one position": lambda model: [Add(("resid_pre", 1), vectors(model), positions=2)],
    "the last position": lambda model: [Add(("resid_pre", 1), vectors(model), positions="last")],
    "counted from the end": lambda model: [Add(("mlp_out", 0), vectors(model), positions=-2)],
    "the last by number": lambda model: [Add(("mlp_out", 2), vectors(model), positions=LENGTH - 1)],
    "a head": lambda model: [Zero(("z", 1), heads=[0])],
    "a pattern": lambda model: [Scale(("pattern", 1), 0.5, positions=[3, 4])],
    "a key": lambda model: [Zero(("pattern", 2), keys=1)],
    "inside an MLP": lambda model: [Zero(("post", 2), neurons=[0, 3])],
    "a subspace": lambda model: [Project(("resid_pre", 2), subspace=vectors(model))],
    "the final norm": lambda model: [Add("ln_final.hook_out", vectors(model))],
    "logits": lambda model: [Scale("hook_logits", 2.0)],
    "the embedding": lambda model: [Add("hook_embed", vectors(model), positions=1)],
    "two at one point": lambda model: [
        Scale(("resid_pre", 1), 2.0),
        Add(("resid_pre", 1), vectors(model)),
    ],
    "a source": lambda model: [
        Swap(("resid_mid", 1), source(model, tokens(1, LENGTH, seed=3)), positions=[1, 3])
    ],
}


def source(model: lensbridge.LensModel, ids: Tensor) -> Any:
    with torch.no_grad():
        return model.run_with_cache(ids, ["resid_mid", "z", "resid_pre"])[1]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> lensbridge.LensModel:
    return lensbridge.load(build(Shape(request.param, layers=3, dtype=torch.float64)))


MEASURES = {"metric": metric, "last": last, "early": early}


@pytest.fixture(scope="module", params=[1, 2])
def unedited(model: lensbridge.LensModel, request: pytest.FixtureRequest) -> tuple[Tensor, Any]:
    """Ids, and a sweep of them without other edits."""
    ids = tokens(request.param, LENGTH)
    return ids, model.sweep(ids, sweep_cells(3), MEASURES, reduce="none", baseline=True)


@pytest.mark.parametrize("name", DECLARED)
def test_declared_interventions_act_in_batches(
    model: lensbridge.LensModel, unedited: tuple[Tensor, Any], name: str
) -> None:
    (ids, alone), cells = unedited, sweep_cells(3)
    with model.intervene(DECLARED[name](model)):
        found = {
            key: model.sweep(ids, cells, measure, reduce="none", baseline=True)
            for key, measure in MEASURES.items()
        }
        exact = model.sweep(ids, cells, MEASURES, reduce="none", baseline=True, exact=True)
    assert exact.engine == "one by one: asked for"
    assert exact.metric_names == list(MEASURES)
    for i, (key, one) in enumerate(found.items()):
        torch.testing.assert_close(one.values, exact.values[i], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(one.baseline, exact.baseline[i], rtol=1e-7, atol=1e-9)
        if key != "early":  # what comes after the position that it reads does not matter
            assert not torch.allclose(alone.values[i], one.values)
        assert one.engine == "batched"


def test_the_bare_model_with_both_edits_agrees() -> None:
    for family in ("gpt2", "llama", "neox"):
        shape = Shape(family, layers=3, dtype=torch.float64)
        model, bare = lensbridge.load(build(shape)), build(shape)
        ids, steering = tokens(2, LENGTH), vector(shape.d_model)
        places = [(layer, pos) for layer in range(3) for pos in range(LENGTH)]
        cells = [Cell(("mlp_out", layer), (ALL, pos), 0.5) for layer, pos in places]
        with model.intervene([Add(("mlp_out", 1), steering)]):
            found = model.sweep(ids, cells, last, reduce="none", exact=False)
        assert found.engine == "batched"
        for i, (layer, pos) in enumerate(places):

            def half(whole: Tensor, pos: int = pos) -> Tensor:
                changed = whole.clone()
                changed[:, pos] = 0.5
                return changed

            changes = [
                (Layer(bare, family, 1).mlp, "output", lambda x, v=steering: x + v),
                (Layer(bare, family, layer).mlp, "output", half),
            ]
            logits = run_changing(bare, changes, ids)
            torch.testing.assert_close(found[i], last(logits), rtol=1e-7, atol=1e-8)


def test_padded_rows_and_patching_by_name() -> None:
    model = lensbridge.load(build(Shape("llama", layers=3, dtype=torch.float64)))
    ids, mask = left_padded(3, LENGTH)
    given = {"input_ids": ids, "attention_mask": mask}
    with model.intervene([Steer(("resid_pre", 1), vectors(model), positions="last")]):
        found, exact = (
            model.sweep(given, sweep_cells(3), metric, reduce="none", exact=way)
            for way in (None, True)
        )
        clean, corrupted = tokens(1, LENGTH), tokens(1, LENGTH, seed=5)
        fast, slow = (
            P.get_act_patch_resid_pre(
                model, corrupted, clean_cache(model, clean), last_sum, exact=e
            )
            for e in (None, True)
        )
    assert found.engine == "batched"
    torch.testing.assert_close(found.values, exact.values, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-9)


def clean_cache(model: lensbridge.LensModel, ids: Tensor) -> Any:
    with torch.no_grad():
        return model.run_with_cache(ids)[1]


def last_sum(logits: Tensor) -> Tensor:
    return last(logits).sum()


@pytest.mark.parametrize(
    "one",
    [
        Noise(("resid_pre", 1), 1.0),
        Mean(("resid_pre", 1)),
        Resample(("resid_pre", 1)),
        Swap(("resid_pre", 1)),
    ],
)
def test_what_looks_at_other_rows_is_run_one_by_one(one: Intervention) -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3, dtype=torch.float64)))
    ids, cells = tokens(2, LENGTH), sweep_cells(2)
    with model.intervene([one]):
        found = model.sweep(ids, cells, metric, reduce="none")
        exact = model.sweep(ids, cells, metric, reduce="none", exact=True)
    assert found.engine.startswith("one by one: other hooks are on the model")
    assert torch.equal(found.values, exact.values)


class Sly(ReplaceKind):
    """Says that it acts on each row by itself, and looks at how many there are."""

    on_integers: ClassVar[bool] = False

    def act(self, region: Any, given: Any) -> Tensor:
        return region.value * (1.0 + len(region.value))


def test_control_rows_find_an_edit_that_depends_on_the_batch() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3, dtype=torch.float64)))
    ids, cells = tokens(1, LENGTH), sweep_cells(2)
    with model.intervene([Sly(("mlp_out", 1), 0.0)]):
        found = model.sweep(ids, cells, metric, reduce="mean")
        exact = model.sweep(ids, cells, metric, reduce="mean", exact=True)
    assert "gives other logits" in found.engine
    torch.testing.assert_close(found.values, exact.values)


def test_hooks_beside_interventions_are_run_one_by_one() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3, dtype=torch.float64)))
    ids, cells = tokens(1, LENGTH), sweep_cells(2)
    with model.intervene([Zero(("z", 1))]), model.hooks([("z", lambda z, hook: z * 2)]):
        found = model.sweep(ids, cells, metric, reduce="mean")
    assert found.engine.startswith("one by one: other hooks are on the model")
    with model.intervene([Zero(("z", 1))]):
        assert model.sweep(ids, cells, metric, reduce="mean").engine == "batched"
    assert model.engine.is_idle


@pytest.mark.parametrize(
    "name", ["Gemma2ForCausalLM", "MixtralForCausalLM", "BloomForCausalLM", "DeepseekV3ForCausalLM"]
)
def test_other_families(name: str) -> None:
    model = of_class(name)
    ids = torch.randint(5, 30, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    cells = [
        Cell((point, layer), (ALL, pos), 0.25)
        for point in ("resid_pre", "attn_out")
        for layer in range(2)
        for pos in range(LENGTH)
    ]
    steering = Steer("resid_pre", vectors(model).float())
    with model.intervene([steering]):
        found = model.sweep(ids, cells, metric, reduce="mean")
        exact = model.sweep(ids, cells, metric, reduce="mean", exact=True)
    assert found.engine == "batched"
    torch.testing.assert_close(found.values, exact.values, rtol=1e-4, atol=1e-5)
