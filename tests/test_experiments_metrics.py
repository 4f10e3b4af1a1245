"""Declared metrics: against formulas in float64 on logits, one text at a time."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

import lensbridge
from lensbridge import causal, patching
from lensbridge.errors import InputError, LensbridgeError, TokenError
from lensbridge.experiments import (
    KL,
    Logit,
    LogitDiff,
    LogProb,
    Loss,
    Metric,
    MetricRun,
    Prob,
    Rank,
)
from lensbridge.interventions import Zero
from lensbridge.metrics import bound

CLEAN, CORRUPTED = "The Eiffel Tower is in the city of", "The Galata Tower is in the city of"
TEXTS = ["The Eiffel Tower is in the city of", "The Colosseum is in", "Paris"]


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


def alone(model: Any) -> list[Tensor]:
    """The logits of each text, run alone by the bare model, in float64. `[pos, d_vocab]`"""
    with torch.no_grad():
        return [model.hf_model(model.to_tokens(text)).logits[0].double() for text in TEXTS]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)


def batched(model: Any, metric: Metric, side: str = "right") -> Tensor:
    """The metric of the texts in one padded batch."""
    ids, mask = model.to_tokens(TEXTS, padding_side=side, return_mask=True)
    given = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        return bound(model, given, {"it": metric})["it"](model(given))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("position", [-1, 0, [0, -2, -1]])
def test_metrics_of_tokens_are_those_of_each_text_alone(
    model: Any, side: str, position: Any
) -> None:
    a, b = model.to_single_token(" Paris"), model.to_single_token(" Rome")
    at = position if isinstance(position, list) else [position] * len(TEXTS)
    rows = [logits[where] for logits, where in zip(alone(model), at, strict=True)]
    wanted = {
        Logit(" Paris", position): [row[a] for row in rows],
        LogitDiff(" Paris", b, position): [row[a] - row[b] for row in rows],
        LogProb(" Paris", position): [row.log_softmax(-1)[a] for row in rows],
        Prob(" Paris", position): [row.softmax(-1)[a] for row in rows],
        Rank(" Paris", position): [(row > row[a]).sum() for row in rows],
    }
    for metric, values in wanted.items():
        found = batched(model, metric.reduced("none"), side)
        close(found, torch.stack(values))
        assert torch.equal(batched(model, metric, side), found.mean())
        assert torch.equal(batched(model, metric.reduced("sum"), side), found.sum())


def test_a_token_for_each_example(model: Any) -> None:
    words = [" Paris", " Rome", " in"]
    ids = [model.to_single_token(word) for word in words]
    wanted = torch.stack([row[-1, one] for row, one in zip(alone(model), ids, strict=True)])
    for tokens in (words, tuple(ids), torch.tensor(ids), [words[0], *ids[1:]]):
        found = batched(model, Logit(tokens, reduce="none"))
        close(found, wanted)
    with pytest.raises(InputError, match=r"2 tokens, one for each example.* 3 examples"):
        batched(model, Logit(words[:2]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_losses_are_those_of_each_text_and_their_mean_is_the_models(model: Any, side: str) -> None:
    found = batched(model, Loss(reduce="none"), side)
    pairs = zip(alone(model), map(model.to_tokens, TEXTS), strict=True)
    wanted = [cross_entropy(logits[:-1], ids[0, 1:]) for logits, ids in pairs]
    close(found, torch.stack(wanted))
    torch.testing.assert_close(batched(model, Loss(), side), model(TEXTS, return_type="loss"))


@pytest.mark.parametrize("position", [-1, None])
def test_divergence_is_that_of_the_formula(model: Any, position: Any) -> None:
    def wanted(logits: Tensor, other: Tensor) -> Tensor:
        rows = [one.double().log_softmax(-1) for one in (logits, other)]
        by_token = kl_div(rows[0], rows[1], log_target=True, reduction="none").sum(-1)
        return by_token.mean() if position is None else by_token[position]

    edit = Zero(("z", 1))
    with torch.no_grad():
        clean = [model(text)[0] for text in TEXTS]
        edited = [model.run_with_interventions(text, edit)[0] for text in TEXTS]
    values = torch.stack([wanted(*pair) for pair in zip(edited, clean, strict=True)])
    metric = KL(position=position, reduce="none")
    found = model.sweep(TEXTS, [edit], metric, baseline=True)
    close(found.values[0], values)
    assert torch.equal(found.baseline, torch.zeros(3))
    stored = replace(metric, reference=model(TEXTS).detach())
    assert torch.equal(model.sweep(TEXTS, [edit], stored).values, found.values)


def test_divergence_of_logits_of_one_position() -> None:
    logits, other = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert torch.equal(KL(other[:, -1])(logits), KL(other)(logits))
    other[:, -1, 2] = -torch.inf  # a token that cannot come has no share
    assert bool(KL(other)(logits).isfinite())


def test_metrics_are_taken_where_functions_are(model: Any) -> None:
    a, b = model.to_single_token(" Paris"), model.to_single_token(" Istanbul")
    metric = LogitDiff(" Paris", " Istanbul")

    def function(logits: Tensor) -> Tensor:
        return logits[0, -1, a] - logits[0, -1, b]

    _, cache = model.run_with_cache(CLEAN)
    cells = [Zero(("z", layer)) for layer in range(4)]
    calls = [
        lambda one: model.sweep(CLEAN, cells, one).values,
        lambda one: model.gradients(CLEAN, "resid_pre", one).gradients["resid_pre", 1],
        lambda one: patching.get_act_patch_resid_pre(model, CORRUPTED, cache, one),
        lambda one: patching.path_patch(model, CLEAN, CORRUPTED, "m1", "logits", one),
        lambda one: causal.attribution_patch(model, CLEAN, CORRUPTED, one)["head"],
        lambda one: (
            causal.cache_activation_and_gradient(
                model, CLEAN, one, ("z", 1), compute_gradient=False
            ).metric
        ),
    ]
    for call in calls:
        assert torch.equal(torch.as_tensor(call(metric)), torch.as_tensor(call(function)))


def test_a_sweep_keeps_the_examples_where_the_metric_does(model: Any) -> None:
    cells = [Zero(("z", layer)) for layer in range(4)]
    metric = LogProb(" Paris")
    each = model.sweep(TEXTS, cells, metric, reduce="none")
    assert each.shape == (4, 3)
    assert torch.equal(model.sweep(TEXTS, cells, metric.reduced("none")).values, each.values)
    torch.testing.assert_close(model.sweep(TEXTS, cells, metric).values, each.mean())
    torch.testing.assert_close(model.sweep(TEXTS, cells, metric, reduce="mean").values, each.mean())


@pytest.mark.parametrize(
    "metric",
    [Logit(3), LogitDiff([1, 2], " b", [0, 1]), KL(), Loss(reduce="none"), Rank("x", "last")],
)
def test_metrics_are_data(metric: Metric) -> None:
    again = pickle.loads(pickle.dumps(metric))
    assert repr(again) == repr(metric)


def test_metrics_show_what_was_written() -> None:
    assert repr(LogitDiff(" Paris", 3)) == "LogitDiff(' Paris', 3)"
    assert repr(Logit((1, 2), 0, reduce="none")) == "Logit((1, 2), position=0, reduce='none')"
    assert repr(KL(torch.zeros(1, 2, 3))) == "KL(reference=tensor of [1, 2, 3])"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: Logit(1.5), "A token is a text or an id"),
        (lambda m: Logit([]), "A token is a text or an id"),
        (lambda m: Logit(True), "A token is a text or an id"),
        (lambda m: Logit(1, "first"), "position is an int, 'last', or a list"),
        (lambda m: Logit(1, None), "position is an int, 'last', or a list"),
        (lambda m: Logit(1, reduce="max"), "reduce is 'mean', 'sum' or 'none'"),
        (lambda m: KL("clean"), "reference is a tensor of logits"),
        (lambda m: Logit(" Paris")(torch.zeros(1, 2, 9)), "no tokenizer is known here"),
        (lambda m: Logit(9)(torch.zeros(1, 2, 9)), "no token 9: the vocabulary has 9"),
        (lambda m: Logit(1, 2)(torch.zeros(1, 2, 9)), "position=2: example 0 has 2 tokens"),
        (lambda m: Logit(1, [0, 1])(torch.zeros(1, 2, 9)), "2 entries, one for each example"),
        (lambda m: Logit(1)(torch.zeros(2, 9)), r"logits \[batch, pos, d_vocab\]"),
        (lambda m: Loss()(torch.zeros(1, 2, 9)), "Loss is of the ids that were run"),
        (lambda m: KL()(torch.zeros(1, 2, 9)), "not known here"),
        (lambda m: KL(torch.zeros(1, 3, 9))(torch.zeros(1, 2, 9)), "of the same texts"),
        (lambda m: batched(m, Logit(1, 5)), r"position=5: example 2 has 2 tokens\.$"),
        (lambda m: m.gradients("a", "z", KL()), "not known here"),
        (lambda m: m.gradients("a", "z", Logit(1), at=("z", 0)), "leave at=... out"),
        (lambda m: m.gradients("a", "z", Rank(1)), "has no gradient"),
        (lambda m: m.gradients("a", "z", Logit(" nowhereville")), "model.answer_logprobs"),
    ],
)
def test_wrong_metrics_say_what_is_wrong(model: Any, make: Any, message: str) -> None:
    with pytest.raises(LensbridgeError, match=message):
        make(model)


def test_a_text_of_several_tokens_is_refused_before_anything_runs(model: Any) -> None:
    with pytest.raises(TokenError, match="not one"):
        Logit("the city of").bound(MetricRun(tokens=model.tokens))
