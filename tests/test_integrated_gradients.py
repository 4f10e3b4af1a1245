"""Integrated gradients, and gradients of several numbers: against autograd on the bare model."""

from typing import Any

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

import lensbridge
from lensbridge.errors import LensbridgeError
from lensbridge.experiments import LogitDiff
from lensbridge.interventions import Scale

TEXT = "The Eiffel Tower is in the city of"
TEXTS = [TEXT, "The Colosseum is in"]
METRIC = LogitDiff(" Paris", " Rome")


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


def by_hand(model: Any, ids: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions, and the number at both ends, from the bare model in float64."""
    bare = model.hf_model.double()
    end = bare.get_input_embeddings()(ids).detach()
    a, b = model.to_single_token(" Paris"), model.to_single_token(" Rome")

    def number(embeds: Tensor) -> Tensor:
        logits = bare(inputs_embeds=embeds).logits[:, -1]
        return (logits[:, a] - logits[:, b]).mean()

    total = torch.zeros_like(end)
    for node, weight in zip(*leggauss(steps), strict=True):
        here = (start + (node + 1) / 2 * (end - start)).requires_grad_()
        (grad,) = torch.autograd.grad(number(here), here)
        total += weight / 2 * grad
    with torch.no_grad():
        ends = number(end), number(start.expand_as(end))
    bare.float()
    return (end - start) * total, *ends


@pytest.mark.parametrize("steps", [3, 40])
def test_contributions_are_those_of_autograd_by_hand(model: Any, steps: int) -> None:
    ids = model.to_tokens(TEXT)
    entries, value, baseline = by_hand(model, ids, torch.zeros(()).double(), steps)
    found = model.integrated_gradients(TEXT, METRIC, steps=steps)
    torch.testing.assert_close(found.entries.double(), entries, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.values.double(), entries.sum(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.value.double(), value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.baseline_value.double(), baseline, rtol=1e-4, atol=1e-4)
    if steps == 40:  # the contributions add up to the difference
        torch.testing.assert_close(found.values.sum().double(), value - baseline, rtol=0, atol=1e-3)
        assert abs(found.gap) < 1e-3


def test_a_baseline_is_a_tensor_or_another_input(model: Any) -> None:
    other = "The Galata Tower is in the city of"
    start = model.hf_model.get_input_embeddings()(model.to_tokens(other)).detach()
    entries, _, baseline = by_hand(model, model.to_tokens(TEXT), start.double(), 8)
    for given in (other, model.to_tokens(other), start):
        found = model.integrated_gradients(TEXT, METRIC, baseline=given, steps=8)
        torch.testing.assert_close(found.entries.double(), entries, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.baseline_value.double(), baseline, rtol=1e-4, atol=1e-4)
        differs = found.values[0].nonzero().flatten().tolist()
        assert [model.to_str_tokens(TEXT)[one] for one in differs] == [" Eiffel"]


def test_padding_contributes_nothing_and_texts_do_not_mix(model: Any) -> None:
    both = model.integrated_gradients(TEXTS, METRIC.reduced("sum"), steps=4)
    for row, text in enumerate(TEXTS):
        alone = model.integrated_gradients(text, METRIC, steps=4).values[0]
        torch.testing.assert_close(both.values[row, : len(alone)], alone, rtol=1e-3, atol=1e-3)
        assert not both.values[row, len(alone) :].any()
    assert both.positions is None


def test_other_points_and_edits_of_a_context(model: Any) -> None:
    zeros = model.integrated_gradients(TEXT, METRIC, at=("mlp_post", 1), steps=16)
    assert zeros.values.shape == (1, 9)
    off = model.run_with_hooks(
        TEXT, fwd_hooks=[("blocks.1.mlp.hook_post", lambda value, hook: value * 0)]
    )
    a, b = model.to_single_token(" Paris"), model.to_single_token(" Rome")
    torch.testing.assert_close(zeros.baseline_value, off[0, -1, a] - off[0, -1, b])
    assert abs(zeros.gap) < 1e-3
    edit = Scale(("z", 2), 0.5)
    with model.intervene(edit):
        edited = model.integrated_gradients(TEXT, METRIC, steps=4)
        logits = model(TEXT)
    torch.testing.assert_close(edited.value, logits[0, -1, a] - logits[0, -1, b])
    assert model.engine.is_idle


def test_the_result_shows_itself_and_is_a_tensor(model: Any) -> None:
    found = model.integrated_gradients(TEXT, steps=2)
    assert torch.equal(found + 0, found.values)
    assert "Eiffel" in found.plot()._repr_html_()
    assert repr(found).startswith("IntegratedGradients([1, 9], value 1.0486, gap ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.integrated_gradients(TEXT, steps=0), "steps is 1 or more"),
        (lambda m: m.integrated_gradients(TEXT, baseline="Paris"), "as many positions"),
        (lambda m: m.integrated_gradients(TEXT, baseline=torch.zeros(3)), "as many positions"),
        (lambda m: m.integrated_gradients(TEXT, lambda logits: logits[0]), "must give one number"),
        (lambda m: m.integrated_gradients(TEXT, at="blocks.9.hook_z"), "There is no layer 9"),
        (lambda m: m.gradients(TEXT, "z", []), "nothing to differentiate"),
        (lambda m: m.gradients(TEXT, "z", {"a": lambda logits: logits[0]}), "must give one number"),
        (lambda m: m.gradients(TEXT, "z", {"a": 3}), "of is a function"),
    ],
)
def test_what_cannot_be_done_says_so(model: Any, call: Any, message: str) -> None:
    with pytest.raises(LensbridgeError, match=message):
        call(model)
    assert model.engine.is_idle


def test_several_numbers_share_the_run_forward(model: Any) -> None:
    of = {
        "first": lambda logits: logits[0, -1, 3],
        "loss": "loss",
        "second": lambda logits: logits[1, 2].square().sum(),
        "metric": METRIC,
    }
    names = ["resid_pre", "z", ("mlp_in", 1)]
    runs: list[Any] = []
    handle = model.hf_model.transformer.wte.register_forward_hook(lambda *args: runs.append(args))
    found = model.gradients(TEXTS, names, of)
    count = len(runs)
    one_by_one = {name: model.gradients(TEXTS, names, one) for name, one in of.items()}
    handle.remove()
    assert count * len(of) == len(runs) - count
    assert list(found) == list(of)
    for name, (value, grads) in one_by_one.items():
        torch.testing.assert_close(found[name].value, value)
        assert list(found[name].gradients) == list(grads)
        for point in grads:
            assert torch.equal(found[name].gradients[point], grads[point])
    listed = model.gradients(TEXTS, names, list(of.values()), return_activations=True)
    assert len(listed) == len(of)
    for name, one in zip(of, listed, strict=True):
        assert torch.equal(one.gradients["z", 2], found[name].gradients["z", 2])
        assert torch.equal(one.activations["z", 2], listed[0].activations["z", 2])


def test_several_numbers_of_activations(model: Any) -> None:
    of = [lambda cache, i=i: cache["mlp_post", 2][0, -1, i] for i in (7, 8)]
    found = model.gradients(TEXT, "embed", of, at=("mlp_post", 2))
    for one, single in zip(found, of, strict=True):
        value, grads = model.gradients(TEXT, "embed", single, at=("mlp_post", 2))
        assert torch.equal(one.value, value)
        assert torch.equal(one.gradients["embed"], grads["embed"])
