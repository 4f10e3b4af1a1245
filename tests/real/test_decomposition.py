"""Terms of the stream and of a logit, summed and held against the bare model."""

import pytest
import torch
from real.trained import TOWER, Trained, at
from torch import Tensor

from lensbridge.analysis import direct_logit_attribution
from lensbridge.cache import ActivationCache


@pytest.fixture(scope="module")
def cache(trained: Trained) -> ActivationCache:
    _, cache = trained.lens.run_with_cache(trained.ids(TOWER))
    return cache


def off(rows: Tensor, wanted: Tensor) -> float:
    """The error of a sum, in units of the size of its terms."""
    size = rows.double().norm(dim=-1).sum(0)
    return float(((rows.double().sum(0) - wanted.double()).norm(dim=-1) / size).max())


def test_terms_sum_to_the_stream_but_for_the_models_own_additions(
    trained: Trained, cache: ActivationCache
) -> None:
    """The terms are exact, so the bound is what the model rounds when it adds them up."""
    recording = trained.record(trained.ids(TOWER))
    terms = cache.decompose_resid(check=True)
    streams = [
        at(recording, trained.places(i)[point])
        for i in range(trained.lens.cfg.n_layers)
        for point in ("hook_resid_mid", "hook_resid_post")
    ]
    assert len(terms) == 1 + len(streams)
    error = (terms.double().sum(0) - streams[-1].double()).abs()
    bound = trained.rounding * torch.stack(streams).double().abs().sum(0)
    assert (error <= bound).all()


@pytest.mark.parametrize("layer", [1, -1])
def test_heads_and_the_rest_sum_to_the_stream(
    trained: Trained, cache: ActivationCache, layer: int
) -> None:
    last = layer % (trained.lens.cfg.n_layers + 1)
    recording = trained.record(trained.ids(TOWER))
    stream = at(recording, trained.places(last - 1)["hook_resid_post"])
    heads, labels = cache.stack_head_results(layer, return_labels=True)
    assert len(heads) == len(labels) == last * trained.lens.cfg.n_heads
    rest = cache.decompose_resid(layer, mode="mlp")
    assert off(torch.cat([heads, rest]), stream) < 4 * trained.rounding


def test_heads_neurons_and_biases_sum_to_the_stream(
    trained: Trained, cache: ActivationCache
) -> None:
    recording = trained.record(trained.ids(TOWER))
    stream = at(recording, trained.places(trained.lens.cfg.n_layers - 1)["hook_resid_post"])
    rows, labels = cache.get_full_resid_decomposition(pos_slice=-1, return_labels=True, check=True)
    heads, neurons = trained.lens.cfg.n_heads, trained.lens.cfg.d_mlp
    assert len(rows) == len(labels) == trained.lens.cfg.n_layers * (heads + neurons) + 2
    assert off(rows, stream[:, -1]) < 4 * trained.rounding


@pytest.mark.parametrize("unit", ["component", "layer", "head", "neuron"])
def test_direct_attributions_sum_to_the_logits(
    trained: Trained, cache: ActivationCache, unit: str
) -> None:
    paris, berlin = trained.token(" Paris"), trained.token(" Berlin")
    logits = trained.record(trained.ids(TOWER)).logits[0, -1].double()
    for wanted, asked in (
        (logits[paris], (" Paris",)),
        (logits[paris] - logits[berlin], (" Paris", " Berlin")),
    ):
        found = direct_logit_attribution(trained.lens, None, *asked, unit=unit, cache=cache)
        rows = found.attribution[:, 0].double()
        error = (rows.sum() + found.bias.double().sum() - wanted).abs()
        size = rows.abs().sum() + logits[paris].abs() + logits[berlin].abs()
        assert error < 8 * trained.rounding * size
