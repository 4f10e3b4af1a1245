"""Linear probes: against scikit-learn, closed forms, and what is known of the activations."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.analysis import Probe, ProbeResult, fit_probe
from lensbridge.analysis.probes.folds import splits
from lensbridge.demo.text import held_out_facts
from lensbridge.errors import InputError
from lensbridge.interventions import Steer

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {2: ["no", "yes"], 4: ["a", "b", "c", "d"]}


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


def blobs(examples: int, features: int, classes: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Classes that overlap, features of very different scale, and one that is constant."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.arange(examples) % classes
    centres = torch.randn(classes, features, generator=draw)
    values = centres[numbers] + 1.5 * torch.randn(examples, features, generator=draw)
    values = values * torch.logspace(-2, 2, features) + 3
    values[:, 0] = 7.0
    return values, [CLASSES[classes][i] for i in numbers.tolist()]


def theirs(kind: str, penalty: float) -> Any:
    model = (
        LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=100_000)
        if kind == "logistic"
        else Ridge(alpha=penalty)
    )
    return make_pipeline(StandardScaler(), model)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("features", [6, 90])  # fewer and more than there are examples
@pytest.mark.parametrize("penalty", [0.3, 10.0])
def test_logistic_probes_are_those_of_scikit_learn(
    classes: int, features: int, penalty: float
) -> None:
    values, labels = blobs(60, features, classes)
    probe = fit_probe(values, labels, penalty=penalty)[0]
    known = theirs("logistic", penalty).fit(values.double().numpy(), labels)
    others, _ = blobs(30, features, classes, seed=1)
    wanted = torch.tensor(known.predict_proba(others.double().numpy()))
    torch.testing.assert_close(probe.probabilities(others), wanted, atol=1e-5, rtol=0)
    assert probe.predict(others) == known.predict(others.double().numpy()).tolist()
    assert probe.classes == tuple(known.classes_)
    inner, scale = known[-1], known[0].scale_
    wanted = torch.tensor(inner.coef_ / scale)
    torch.testing.assert_close(
        probe.weight, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-3
    )


@pytest.mark.parametrize("features", [6, 90])
def test_ridge_probes_are_those_of_scikit_learn(features: int) -> None:
    values, _ = blobs(60, features, 2)
    numbers = values[:, 1:4].double() @ torch.tensor([3.0, -1.0, 0.1]).double() + torch.randn(60)
    probe = fit_probe(values, numbers, penalty=2.5)[0]
    known = theirs("ridge", 2.5).fit(values.double().numpy(), numbers.numpy())
    wanted = torch.tensor(known.predict(values.double().numpy()))
    torch.testing.assert_close(probe.predict(values), wanted, atol=1e-6, rtol=1e-6)
    assert probe.kind == "ridge"


def test_scores_are_of_held_out_examples() -> None:
    values, labels = blobs(63, 20, 4)
    result = fit_probe(values, labels, validation=5, seed=3)
    held_out = splits(torch.arange(63), labels, 5, 3)
    assert torch.equal(torch.stack(held_out).sum(0), torch.ones(63, dtype=torch.long))
    for split, score in zip(held_out, result[0].scores.tolist(), strict=True):
        share = [labels[i] for i in split.nonzero().flatten().tolist()]
        assert max(map(share.count, set(labels))) - min(map(share.count, set(labels))) <= 1
        fitted = theirs("logistic", 1.0).fit(
            values[~split].double().numpy(), np.array(labels)[~split.numpy()]
        )
        wanted = fitted.score(values[split].double().numpy(), np.array(labels)[split.numpy()])
        assert score == pytest.approx(wanted)
    assert float(result.scores) == pytest.approx(float(result[0].scores.mean()))
    assert result.chance == pytest.approx(16 / 63)
    assert float(result.stderr) == pytest.approx(float(result[0].scores.std() / 5**0.5))


def test_noise_scores_as_chance_and_signal_does_not() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 150, generator=draw)
    labels = [i % 2 == 0 for i in range(400)]
    assert 0.4 < float(fit_probe(noise, labels).accuracy) < 0.6
    signal = noise.clone()
    signal[:, 17] += 8 * torch.tensor(labels)
    result = fit_probe(signal, labels)
    assert float(result.accuracy) > 0.99
    assert int(result.direction(0).abs().argmax()) == 17
    assert float(result.direction(0).norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(result.direction(0)[17]) > 0
    torch.testing.assert_close(result.direction(0, False), -result.direction(0, True))


def test_the_best_layer_is_the_one_with_the_signal() -> None:
    draw = torch.Generator().manual_seed(1)
    layers = torch.randn(3, 80, 6, generator=draw)
    labels = [i % 2 == 0 for i in range(80)]
    layers[1, :, 4] += 6 * torch.tensor(labels)
    result = fit_probe(layers, labels)
    assert (result.best_layer, result.score_name) == (1, "accuracy")
    assert torch.equal(result.direction(), result[1].direction())
    assert int(result.direction().abs().argmax()) == 4
    assert result.predict(layers[1]).tolist() == result[1].predict(layers[1]).tolist()


@pytest.mark.parametrize("classes", [2, 4])
def test_few_steps_are_needed(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    steps = []
    search = torch.optim.LBFGS.step

    def counted(self: Any, closure: Any) -> Any:
        found = search(self, closure)
        steps.append(self.state[self._params[0]]["n_iter"])
        return found

    monkeypatch.setattr(torch.optim.LBFGS, "step", counted)
    values, labels = blobs(300, 80, classes)
    fit_probe(values @ torch.randn(80, 200), labels, penalty=0.1)  # correlated and separable
    assert sum(steps) < 6 * 150


def test_activations_of_inference_mode() -> None:
    values, labels = blobs(40, 5, 2)
    with torch.inference_mode():
        inside = values.double() * 1
        found = fit_probe(inside, labels)[0]
    torch.testing.assert_close(found.weight, fit_probe(values.double(), labels)[0].weight)


def test_rounding_is_no_feature() -> None:
    labels = [i % 2 for i in range(40)]
    equal = torch.full((40, 3), 1000.0)
    rounded = equal + 6.2e-5 * torch.tensor(labels)[:, None]  # one unit in the last place
    assert bool((rounded != equal).any())
    assert float(fit_probe(rounded, labels)[0].weight.abs().max()) == 0
    assert float(fit_probe(rounded.double(), labels).accuracy) == 1


def test_a_share_is_held_out_once() -> None:
    values, labels = blobs(60, 5, 2)
    result = fit_probe(values, labels, validation=0.25)
    (held,) = splits(torch.arange(60), labels, 0.25, 0)
    assert int(held.sum()) == 15
    assert result.split_scores.shape == (1, 1)
    assert bool(result.stderr.isnan())
    result.plot()


def test_r2_of_numbers_is_that_of_scikit_learn() -> None:
    values, _ = blobs(40, 5, 2)
    numbers = (values[:, 2] / values[:, 2].std() + 0.5 * torch.randn(40)).tolist()
    result = fit_probe(values, numbers, validation=4)
    for split, score in zip(splits(torch.arange(40), None, 4, 0), result[0].scores, strict=True):
        given = values.double().numpy()
        known = theirs("ridge", 1.0).fit(given[~split], np.array(numbers)[~split])
        assert float(score) == pytest.approx(known.score(given[split], np.array(numbers)[split]))
    assert result.score_name == "R2"
    with pytest.raises(InputError, match="no accuracy"):
        _ = result.accuracy
    with pytest.raises(InputError, match="leave label out"):
        result.direction(0, "yes")


# --- caches -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts() -> Any:
    return [one for one in held_out_facts(120) if one.answer in (" Paris", " Rome", " London")]


@pytest.mark.parametrize("side", ["left", "right"])
def test_probes_of_a_cache_read_each_texts_own_token(facts: Any, side: Any) -> None:
    model = demo()
    _, cache = model.run_with_cache(facts, "resid_post", padding_side=side)
    answers = [one.answer for one in facts]
    result = fit_probe(cache, answers, validation=3)
    assert result.layers == [0, 1, 2, 3]
    assert result.classes == (" London", " Paris", " Rome")
    for layer in result:
        same = fit_probe(cache.last_token("resid_post", layer), answers, validation=3)[0]
        torch.testing.assert_close(result[layer].weight, same.weight)
        assert torch.equal(result[layer].scores, same.scores)
    assert float(result.scores[-1]) > 0.9 > result.chance  # the model knows the answer
    assert result.evaluate(cache, answers, 3) == 1.0
    assert result.predict(cache, 3) == answers
    assert torch.equal(result[-1].weight, result[3].weight)


def test_directions_steer(facts: Any) -> None:
    model = demo()
    _, cache = model.run_with_cache(facts, "resid_post")
    result = fit_probe(cache, [one.answer for one in facts], layers=[2], validation=3)
    token, text = model.to_single_token(" Rome"), "The Eiffel Tower is in the city of"
    direction = result.direction(2, " Rome")
    assert direction.dtype == model.dtype
    before = model(text).detach().log_softmax(-1)[0, -1, token]
    with model.intervene([Steer(("resid_post", 2), direction, strength=20.0)]):
        after = model(text).detach().log_softmax(-1)[0, -1, token]
    assert float(after) > float(before) + 1


def test_tokens_are_examples_and_stay_with_their_text() -> None:
    model = demo()
    texts = ["John and Mary went to the store", "When Tom", "Anna and Paul met at the park"] * 3
    _, cache = model.run_with_cache(texts, "resid_post")
    labels = cache.tokens % 3
    real = cache.attention_mask.bool()
    result = fit_probe(cache, labels, layers=[0], position="all", validation=3)
    same = fit_probe(cache["resid_post", 0][real], labels[real], validation=3)
    torch.testing.assert_close(result[0].weight, same[0].weight)
    text = torch.arange(9)[:, None].expand_as(real)[real]
    for split in splits(text, labels[real].tolist(), 3, 0):
        assert not set(text[split].tolist()) & set(text[~split].tolist())
    with pytest.raises(InputError, match=r"labels are \[9, "):
        fit_probe(cache, labels[:, :2], position="all")


def test_means_and_heads() -> None:
    model = demo()
    texts = ["John and Mary went to the store", "When Tom", "Anna and Paul met at the park"] * 2
    labels = [0, 1, 0] * 2
    _, cache = model.run_with_cache(texts, ["resid_post", "z"], padding_side="left")
    mask = cache.attention_mask.bool()
    rows = cache["resid_post", 1]
    means = torch.stack([row[real].mean(0) for row, real in zip(rows, mask, strict=True)])
    found = fit_probe(cache, labels, layers=1, position="mean", validation=2)
    wanted = fit_probe({1: means}, labels, validation=2)
    torch.testing.assert_close(found[1].weight, wanted[1].weight, atol=1e-4, rtol=1e-3)
    heads = fit_probe(cache, labels, "z", position=-1, validation=2)
    assert heads.direction(1).shape == (model.cfg.n_heads, model.cfg.d_head)
    one = fit_probe(cache, labels, "blocks.2.hook_resid_post", validation=2)
    assert one.layers == [2]
    assert one.predict(cache).tolist() == labels


# --- files, tables, messages ------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Any, facts: Any) -> None:
    _, cache = demo().run_with_cache(facts, "resid_post")
    result = fit_probe(cache, [one.answer for one in facts], layers=[1, 3], validation=2, seed=4)
    again = ProbeResult.load(result.save(tmp_path / "probe.safetensors"))
    assert again.layers == [1, 3]
    assert again.classes == result.classes
    assert torch.equal(again.split_scores, result.split_scores)
    assert torch.equal(again.direction(3, " Rome"), result.direction(3, " Rome"))
    assert again.predict(cache, 1) == result.predict(cache, 1)
    assert repr(again) == repr(result)
    assert result.save(tmp_path / "probe.svg").read_text(encoding="utf-8").startswith("<")
    for wrong in (tmp_path / "none.safetensors", tmp_path / "probe.svg"):
        with pytest.raises(InputError, match="probes"):
            ProbeResult.load(wrong)
    with pytest.raises(InputError, match=r"\.safetensors"):
        result.save(tmp_path / "probe.txt")
    with pytest.raises(InputError, match="no folder"):
        result.save(tmp_path / "away" / "probe.safetensors")
    table = result.to_dataframe()
    assert table.columns.tolist() == ["layer", "split", "accuracy"]
    assert table["accuracy"].tolist() == result.split_scores.flatten().tolist()
    picture = result.plot()
    assert list(picture.series["accuracy"]) == result.scores.tolist()
    assert picture.reference == (result.chance, "chance")


@pytest.mark.parametrize("kind", [bool, int, str, np.int64])
def test_labels_of_every_type(kind: Any) -> None:
    values, labels = blobs(30, 5, 2)
    given = [kind(one == "yes") for one in labels]
    probe = fit_probe(values, given, validation=3)[0]
    found = probe.predict(values)
    assert isinstance(probe, Probe)
    assert (found if isinstance(found, list) else found.tolist()) == [
        probe.classes[p] for p in (probe.outputs(values)[:, 0] > 0).long().tolist()
    ]
    torch.testing.assert_close(probe.weight, fit_probe(values, labels, validation=3)[0].weight)


def test_wrong_arguments_say_what_to_do() -> None:
    values, labels = blobs(30, 5, 2)
    broken = values.clone()
    broken[3, 2] = torch.nan
    for given, wanted, options, message in (
        (values, labels[:-1], {}, "30 examples and 29 labels"),
        (values, ["yes"] * 30, {}, "all 30 labels are 'yes'"),
        (values, ["yes", 1] * 15, {}, "types int, str"),
        (values, [[1, 2]] * 30, {}, "one label for each example"),
        (values, ["yes"] * 29 + ["no"], {}, "'no' has 1 of 30"),
        (values, labels, {"penalty": 0.0}, "penalty"),
        (values, labels, {"kind": "svm"}, "'logistic' or 'ridge'"),
        (values, labels, {"validation": 1}, "number of folds"),
        (values, labels, {"validation": 31}, "31 texts or more"),
        (values, labels, {"validation": 0.001}, "nothing on one side"),
        (broken, labels, {}, "NaN"),
        (values[:, 0], labels, {}, r"\[example, feature\]"),
        ({0: values, 1: values[:9]}, labels, {}, "as many examples"),
        ({}, labels, {}, "no activations"),
        (values, [float("nan")] * 30, {}, "labels have NaN"),
        (values, [1.0] * 30, {}, "no R2"),
    ):
        with pytest.raises(InputError, match=message):
            fit_probe(given, wanted, **options)
    result = fit_probe(values, labels)
    with pytest.raises(InputError, match="no probe of layer 4"):
        result.direction(4)
    with pytest.raises(InputError, match="no class 'maybe'"):
        result.direction(0, "maybe")
    with pytest.raises(InputError, match=r"features of shape \[5\]"):
        result.predict(values[:, :3])
    several = fit_probe(*blobs(30, 5, 4))
    with pytest.raises(InputError, match="Name a class with label="):
        several.direction(0)
    _, cache = demo().run_with_cache(["John", "Mary and Tom"], ["resid_post", "pattern"])
    for point, options, message in (
        ("pattern", {}, "examples and positions"),
        (("resid_post", 0), {"layers": [1]}, "leave layers out"),
        ("resid_post", {"position": "middle"}, "'mean' or 'all'"),
        ("resid_post", {"position": 7}, "example 0 has 2 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            fit_probe(cache, [0, 1], point, validation=2, **options)
    with pytest.raises(InputError, match="not fitted to a cache"):
        result.predict(cache)
