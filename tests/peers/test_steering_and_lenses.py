"""Steering vectors, erasers and tuned lenses beside the packages that the field has for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not hasattr(np, "float_"):
    np.float_ = np.float64  # type: ignore[attr-defined]  # repeng 0.4 names it; NumPy 2 lacks it

from concept_erasure import LeaceEraser
from repeng import ControlVector
from steering_vectors import SteeringVector, train_steering_vector
from steering_vectors.aggregators import pca_aggregator
from tiny_models import Shape, build, tokens
from tuned_lens.nn.lenses import TunedLens as TheirLens

import lensbridge
from lensbridge.analysis import TunedLens
from lensbridge.interventions import SteeringVectors, fit_erasure, leace, steering_vector

pytestmark = pytest.mark.peers

UP = [f"The {name} is in the city of" for name in ("Eiffel Tower", "Louvre", "Colosseum")]
DOWN = [f"The {name} is in the city of" for name in ("Galata Tower", "Tate Gallery", "Kremlin")]


@pytest.mark.parametrize(("method", "theirs"), [("mean_difference", None), ("pca", pca_aggregator)])
def test_vectors_are_those_of_steering_vectors(method: Any, theirs: Any) -> None:
    model = lensbridge.load("demo")
    tokenizer = model.tokens.need()
    tokenizer.padding_side = "right"
    more = {} if theirs is None else {"aggregator": theirs()}
    pairs = list(zip(UP, DOWN, strict=True))
    wanted = train_steering_vector(model.hf_model, tokenizer, pairs, **more)
    found = steering_vector(model, UP, DOWN, "resid_post", method=method, prepend_bos=False)
    for layer, vector in wanted.layer_activations.items():
        torch.testing.assert_close(found[layer].vector, vector, rtol=1e-4, atol=1e-5)


def test_files_go_both_ways(tmp_path: Path) -> None:
    model = lensbridge.load("demo")
    found: Any = steering_vector(model, UP, DOWN, "resid_post")
    found.save(tmp_path / "ours.gguf")
    control = ControlVector.import_gguf(tmp_path / "ours.gguf")
    assert control.model_type == "gpt2"
    assert all(np.array_equal(control.directions[i], found[i].vector.numpy()) for i in range(4))
    (control * 2.0).export_gguf(str(tmp_path / "theirs.gguf"))
    again = SteeringVectors.load(tmp_path / "theirs.gguf")
    torch.testing.assert_close(again.vector, 2 * found.vector)
    found.save(tmp_path / "ours.pt")
    vector = SteeringVector(**torch.load(tmp_path / "ours.pt"))
    ids = model.to_tokens(DOWN[0])
    with torch.no_grad(), vector.apply(model.hf_model, multiplier=1.5):
        wanted = model.hf_model(ids).logits
    found = model.run_with_interventions(ids, found.at(strength=1.5))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.save(vector, tmp_path / "theirs.pt")
    assert torch.equal(SteeringVectors.load(tmp_path / "theirs.pt").vector, again.vector / 2)


def test_leace_is_that_of_concept_erasure() -> None:
    x = torch.randn(300, 12, dtype=torch.float64)
    z = torch.nn.functional.one_hot(torch.arange(300) % 3).double()
    x[:, :3] += 2 * z
    theirs = LeaceEraser.fit(x, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-6)
    torch.testing.assert_close(leace(x, z)(x), theirs(x))
    model = lensbridge.load(build(Shape("gpt2")))
    ids, classes = tokens(40, 5), [i % 2 for i in range(40)]
    found = fit_erasure(model, ids, classes, positions=-1, upstream="clean", fit=LeaceEraser.fit)
    _, cache = model.run_with_cache(ids, "resid_post")
    for layer, one in enumerate(found):
        own = cache["resid_post", layer][:, -1]
        wanted = LeaceEraser.fit(own, torch.tensor(classes).float()[:, None])(own)
        torch.testing.assert_close(one.eraser(own), wanted, rtol=1e-3, atol=1e-4)


def test_tuned_lenses_go_both_ways(tmp_path: Path) -> None:
    hf = build(Shape("gpt2"))
    model = lensbridge.load(hf)
    theirs = TheirLens.from_model(hf)
    for parameter in theirs.layer_translators.parameters():
        parameter.data = torch.randn_like(parameter) / 20
    theirs.save(tmp_path / "theirs")
    ours = TunedLens.load(tmp_path / "theirs", model)
    ids = tokens(2, 6)
    with torch.no_grad():
        states = hf(ids, output_hidden_states=True).hidden_states
        wanted = torch.stack([theirs(states[i], i) for i in range(2)])
    found = model.logit_lens(ids, positions=None, lens=ours)
    torch.testing.assert_close(found.values[:-1], wanted, rtol=1e-4, atol=1e-5)
    ours.save(tmp_path / "ours")
    again = TheirLens.from_model_and_pretrained(hf, str(tmp_path / "ours"))
    with torch.no_grad():
        torch.testing.assert_close(again(states[1], 1), wanted[1], rtol=1e-4, atol=1e-5)
