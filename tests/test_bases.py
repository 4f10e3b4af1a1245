"""Bases of subspaces against their definitions."""

import pytest
import torch
from tiny_models import Shape, build, tokens

import lensbridge
from lensbridge.errors import InputError
from lensbridge.interventions import (
    Swap,
    mean_difference_basis,
    neuron_basis,
    probe_basis,
    random_basis,
    random_neuron_basis,
)


def test_random_ones_are_orthonormal_and_repeatable() -> None:
    one = random_basis(7, 3, seed=4)
    torch.testing.assert_close(one.T @ one, torch.eye(3))
    assert torch.equal(one, random_basis(7, 3, seed=4))
    assert not torch.equal(one, random_basis(7, 3, seed=5))
    drawn = random_neuron_basis(6, 2, exclude=[0, 1, -1])
    assert set(drawn.argmax(0).tolist()) <= {2, 3, 4}
    assert drawn.sum() == 2


def test_means_of_classes_differ_in_it() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(9, 5), list("abcabcabc")
    means = torch.stack([rows[i::3].mean(0) for i in range(3)])
    basis = mean_difference_basis(rows, labels)
    assert basis.shape == (5, 2)
    apart = means - means[0]
    torch.testing.assert_close(apart @ basis @ basis.T, apart)
    two = mean_difference_basis(rows[:8], torch.tensor([0, 1] * 4))
    wanted = rows[1:8:2].mean(0) - rows[0:8:2].mean(0)
    torch.testing.assert_close(two[:, 0], wanted / wanted.norm())


def test_what_a_probe_reads() -> None:
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(probe_basis(weights[:1])[:, 0], weights[0] / weights[0].norm())
    torch.testing.assert_close(probe_basis(weights[0]), probe_basis(weights[:1]))
    basis = probe_basis(weights)
    apart = weights[1] - weights[2]
    torch.testing.assert_close(basis @ (basis.T @ apart), apart)
    assert basis.shape == (6, 2)


def test_the_subspace_of_neurons_is_these_neurons() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 5)
    _, cache = model.run_with_cache(ids.flip(1), names_filter=("post", 1))
    along = Swap(("post", 1), cache, subspace=neuron_basis(20, [3, -1]))
    plain = Swap(("post", 1), cache, neurons=[3, 19])
    found, wanted = (model.run_with_interventions(ids, one) for one in (along, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    rows = torch.randn(4, 3)
    with pytest.raises(InputError, match="has 1 to 3, not 4"):
        random_basis(3, 4)
    with pytest.raises(InputError, match="a label for each"):
        mean_difference_basis(rows, [0, 1])
    with pytest.raises(InputError, match="at least two"):
        mean_difference_basis(rows, [0] * 4)
    with pytest.raises(InputError, match="span 0 dimensions"):
        probe_basis(torch.ones(2, 3))
    with pytest.raises(InputError, match="out of range"):
        neuron_basis(3, [3])
    with pytest.raises(InputError, match="named twice"):
        neuron_basis(3, [2, -1])
    with pytest.raises(InputError, match="k is 1 to 1"):
        random_neuron_basis(3, 2, exclude=[0, 1])
