"""Steering vectors: the statistic by hand, and its effect on what is generated."""

from typing import Any

import pytest
import torch
from test_core_set import built_in
from test_interchange import output_of
from test_interventions import editing
from tiny_models import Layer, Shape, build, tokens

import lensbridge
from lensbridge.errors import InputError
from lensbridge.interventions import steering_vector
from lensbridge.testing import tiny_model

SITE: Any = ("resid_post", 0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_both_methods_are_their_definitions(family: str) -> None:
    hf = build(Shape(family))
    model, up, down = lensbridge.load(hf), tokens(6, 7), tokens(6, 7, seed=3)
    block = Layer(hf, family, 0).block
    a, b = (output_of(hf, block, "output", input_ids=ids).double() for ids in (up, down))
    found = steering_vector(model, up, down, SITE, position=3)
    wanted = a[:, 3].mean(0) - b[:, 3].mean(0)
    torch.testing.assert_close(found.vector.double(), wanted, rtol=1e-4, atol=1e-5)
    found = steering_vector(model, up, down, SITE, position="mean")
    wanted = a.mean((0, 1)) - b.mean((0, 1))
    torch.testing.assert_close(found.vector.double(), wanted, rtol=1e-4, atol=1e-5)
    direction = steering_vector(model, up, down, SITE, method="pca").vector.double()
    differences = a[:, -1] - b[:, -1]
    values, vectors = torch.linalg.eigh(differences.T @ differences)
    top = vectors[:, values.argmax()]
    torch.testing.assert_close((direction @ top).abs().item(), 1.0, rtol=1e-4, atol=1e-4)
    assert float(differences.mean(0) @ direction) > 0
    assert float(direction.norm()) == pytest.approx(1.0, abs=1e-4)


def test_heads_have_a_vector_each() -> None:
    hf = build(Shape("llama"))
    model, up, down = lensbridge.load(hf), tokens(4, 7), tokens(4, 7, seed=3)
    layer = Layer(hf, "llama", 1)
    a, b = (output_of(hf, layer.o, "input", input_ids=ids) for ids in (up, down))
    found = steering_vector(model, up, down, ("z", 1)).at(heads=None, positions=-1)
    wanted = (a[:, -1].mean(0) - b[:, -1].mean(0)).reshape(4, 6)
    torch.testing.assert_close(found.vector, wanted, rtol=1e-4, atol=1e-5)
    model.run_with_interventions(up, found)


def test_texts_of_several_lengths_are_read_at_their_own_last_token() -> None:
    model = lensbridge.load("demo")
    up = ["The Eiffel Tower is in the city of", "The Louvre is in the city of"]
    down = ["The Galata Tower is in the city of"]
    ends = [model.run_with_cache(text)[1][SITE][0, -1] for text in up]
    wanted = torch.stack(ends).mean(0) - model.run_with_cache(down[0])[1][SITE][0, -1]
    for side in ("left", "right"):
        found = steering_vector(model, up, down, SITE, padding_side=side)
        torch.testing.assert_close(found.vector, wanted, rtol=1e-3, atol=1e-4)


def test_steering_turns_what_the_demo_model_says() -> None:
    model = lensbridge.load("demo")
    up, down = (f"The {name} Tower is in the city of" for name in ("Eiffel", "Galata"))
    steer = steering_vector(model, [up], [down], ("resid_post", 2))
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "verbose": False}
    assert not model.generate(down, **options).endswith(" Paris")
    steered = model.generate(down, interventions=[steer.at(positions=-1)], **options)
    assert steered.endswith(" Paris")
    back = [steer.at(positions=-1, strength=-1.0)]
    assert model.generate(up, interventions=back, **options) == model.generate(
        down, **options
    ).replace("Galata", "Eiffel")


@pytest.mark.parametrize(
    ("name", "site", "path"),
    [
        ("Gemma2ForCausalLM", ("resid_post", 0), "model.layers.0"),
        ("MixtralForCausalLM", ("mlp_out", 1), "model.layers.1.mlp"),
        ("JambaForCausalLM", ("resid_post", 0), "model.layers.0"),
        ("BertForMaskedLM", ("resid_post", 1), "bert.encoder.layer.1"),
    ],
)
def test_families(name: str, site: Any, path: str) -> None:
    hf = tiny_model(built_in(name), name)
    model, (up, down) = lensbridge.load(hf), torch.randint(3, 20, (2, 3, 6))
    module = hf.get_submodule(path)
    a, b = (output_of(hf, module, "output", input_ids=ids)[:, -1] for ids in (up, down))
    steer = steering_vector(model, up, down, site)
    vector = a.mean(0) - b.mean(0)
    torch.testing.assert_close(steer.vector, vector, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), editing(module, "output", lambda x: x + 2 * vector):
        wanted = hf(down).logits
    found = model.run_with_interventions(down, steer.at(strength=2.0))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(3, 5)
    with pytest.raises(InputError, match="3 positive and 2 negative"):
        steering_vector(model, ids, ids[:2], SITE, method="pca")
    with pytest.raises(InputError, match="has 5 tokens; got 5"):
        steering_vector(model, ids, ids, SITE, position=5)
    with pytest.raises(InputError, match="method is"):
        steering_vector(model, ids, ids, SITE, method="svd")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="with examples and positions"):
        steering_vector(model, ids, ids, ("pattern", 0))
