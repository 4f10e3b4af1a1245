"""Updates of weights: closed forms by other routes, raw hooks, and facts of the demo model."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from test_core_set import built_in
from test_interchange import output_of
from test_interventions import editing
from tiny_models import Layer, Shape, build, embed_of, tokens
from torch import Tensor

import lensbridge
from lensbridge.editing import (
    SecondMoment,
    abliterated,
    least_squares_update,
    rank_one_update,
    rome,
    second_moments,
)
from lensbridge.errors import InputError, ShapeError, WeightError
from lensbridge.testing import tiny_model

IDS = tokens(4, 6)
FACT = "The {} is in the city of"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_a_rank_one_update_is_the_smallest_change_with_that_value() -> None:
    W, key, value, keys = random(7, 5), random(7), random(5), random(40, 7)
    C = keys.T @ keys / len(keys)
    new = rank_one_update(W, key, value, SecondMoment(keys.T @ keys, len(keys)))
    torch.testing.assert_close(key @ new, value)
    assert int(torch.linalg.matrix_rank(new - W, tol=1e-9)) == 1
    # the optimum of |keys (W' - W)|^2 with key W' = value, by its Lagrange system
    system = torch.zeros(8, 8, dtype=torch.float64)
    system[:7, :7], system[:7, 7], system[7, :7] = C, key, key
    right = torch.cat([torch.zeros(7, 5).double(), (value - key @ W)[None]])
    wanted = W + torch.linalg.solve(system, right)[:7]
    torch.testing.assert_close(new, wanted)
    torch.testing.assert_close(
        rank_one_update(W, key, value),
        W + torch.outer(key, value - key @ W) / (key @ key),
    )


def test_many_keys_are_the_least_squares_of_all() -> None:
    W, keys, values, others = random(6, 4), random(3, 6), random(3, 4), random(50, 6)
    new = least_squares_update(W, keys, values, others.T @ others / 50, preserve=10.0)
    rows = torch.cat([keys, others * (10 / 50) ** 0.5])
    targets = torch.cat([values, others @ W * (10 / 50) ** 0.5])
    torch.testing.assert_close(new, torch.linalg.lstsq(rows, targets).solution)


def test_second_moments_are_those_of_all_real_tokens(tmp_path: Path) -> None:
    model = lensbridge.load("demo")
    texts = ["The Louvre is", "The Eiffel Tower is in the city of", "Rome is", "The Big Ben is in"]
    found = second_moments(model, iter(texts), ["blocks.1.mlp.hook_post", ("post", 2)], 3)
    down = model.hf_model.get_submodule("transformer.h.1.mlp.c_proj")
    rows = []
    for text in texts:
        ids = model.to_tokens(text)
        rows.append(output_of(model.hf_model, down, "input", input_ids=ids)[0, 1:].double())
    every = torch.cat(rows)  # without the BOS
    own = found["blocks.1.mlp.hook_post"]
    assert own.count == len(every)
    torch.testing.assert_close(own.matrix, every.T @ every / len(every), rtol=1e-4, atol=1e-6)
    own.save(tmp_path / "moment.safetensors")
    again = SecondMoment.load(tmp_path / "moment.safetensors")
    assert torch.equal(again.total, own.total)
    assert (again.count, again.name) == (own.count, own.name)
    assert (again + own).count == 2 * own.count
    with pytest.raises(InputError, match="cannot be read"):
        SecondMoment.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no texts"):
        second_moments(model, [], "post")


def test_rome_changes_one_fact() -> None:
    model = lensbridge.load("demo")
    others = {"Louvre": " Paris", "Galata Tower": " Istanbul", "Brandenburg Gate": " Berlin"}
    texts = [FACT.format(one) for one in ("Eiffel Tower", *others)]
    moment = second_moments(model, texts, ("post", 1))["blocks.1.mlp.hook_post"]
    C = moment.matrix + 1e-3 * torch.eye(len(moment.total))
    edit = rome(model, FACT, "Eiffel Tower", " Rome", layer=1, moment=C)
    (name, W), rows = *edit.items(), model.weight("blocks.1.mlp.W_out")
    change = (W - rows.detach()).double()
    assert name == "blocks.1.mlp.W_out"
    assert float(torch.linalg.svdvals(change)[1] / torch.linalg.svdvals(change)[0]) < 1e-4

    def said(subject: str) -> Any:
        return model.to_single_str_token(model(FACT.format(subject))[0, -1].argmax())

    with model.edited(edit):
        assert said("Eiffel Tower") == " Rome"
        assert {subject: said(subject) for subject in others} == others
    assert said("Eiffel Tower") == " Paris"
    several = rome(model, FACT, "Eiffel Tower", " Rome", layer=1, contexts=["We know. "], steps=5)
    with model.edited(several):
        assert said("Eiffel Tower") == " Rome"
    assert all(one.grad is None for one in model.hf_model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_abliteration_is_a_projection_of_everything_that_is_written(family: str) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    direction = torch.randn(model.cfg.d_model)
    unit = direction / direction.norm()

    def project(x: Tensor) -> Tensor:
        return x - (x @ unit)[..., None] * unit

    layers = [Layer(hf, family, i) for i in range(2)]
    branches = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "llama": ("self_attn.o_proj", "mlp")}
    own = branches.get(family, ("attention.dense", "mlp"))
    writers = [layer.block.get_submodule(path) for layer in layers for path in own]
    edits = [editing(writer, "output", project) for writer in writers]
    edits.append(editing(embed_of(hf, family), "output", project))
    if family == "gpt2":
        edits.append(editing(hf.transformer.wpe, "output", project))
    with torch.no_grad(), ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit)
        wanted = hf(IDS).logits
    with model.edited(abliterated(model, 3 * direction), untied=True):
        torch.testing.assert_close(hf(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


def test_some_weights_and_several_directions() -> None:
    model = lensbridge.load(build(Shape("llama")))
    plane = torch.randn(model.cfg.d_model, 2)
    found = abliterated(model, plane, names=["blocks.*.attn.W_O", "embed.W_E"])
    assert set(found) == {"embed.W_E", "blocks.0.attn.W_O", "blocks.1.attn.W_O"}
    for name, W in found.items():
        Q, old = torch.linalg.qr(plane.double()).Q, model.weight(name).double()
        torch.testing.assert_close(W.double(), old - old @ Q @ Q.T, rtol=1e-5, atol=1e-6)


def test_what_would_not_be_exact_is_refused() -> None:
    gemma = lensbridge.load(tiny_model(built_in("Gemma2ForCausalLM"), "Gemma2ForCausalLM"))
    direction = torch.randn(gemma.cfg.d_model)
    with pytest.raises(WeightError, match="ln1_post between"):
        abliterated(gemma, direction)
    assert len(abliterated(gemma, direction, names="*.W_O")) == len(gemma.blocks)
    with pytest.raises(WeightError, match="ln2_post before it is added"):
        rome(gemma, "{} is", "x", " y", layer=0)
    mamba = lensbridge.load(tiny_model(built_in("JambaForCausalLM"), "JambaForCausalLM"))
    with pytest.raises(WeightError, match="weights that have no name"):
        abliterated(mamba, torch.randn(mamba.cfg.d_model))
    model = lensbridge.load("demo")
    with pytest.raises(WeightError, match="no weight that writes"):
        abliterated(model, torch.randn(128), names=["blocks.0.attn.W_Q"])
    with pytest.raises(InputError, match="direction is zero"):
        abliterated(model, torch.zeros(128))
    with pytest.raises(InputError, match=r"\[128\], or several"):
        abliterated(model, torch.ones(5))
    with pytest.raises(InputError, match="where the subject goes"):
        rome(model, "The tower", "Eiffel", " Rome", layer=1)
    with pytest.raises(InputError, match="target is what"):
        rome(model, "The {} is", "Eiffel", "", layer=1)
    with pytest.raises(ShapeError, match="the key is"):
        rank_one_update(torch.ones(3, 2), torch.ones(2), torch.ones(3))
    with pytest.raises(InputError, match="singular"):
        rank_one_update(torch.ones(3, 2), torch.ones(3), torch.ones(2), torch.zeros(3, 3))
