"""Factored matrices, circuits and singular vectors beside TransformerLens's, on its families."""

from typing import Any

import pytest
import torch
from peers.twins import FAMILIES, twins
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import FactoredMatrix as Theirs
from transformer_lens import HookedTransformer, SVDInterpreter
from transformer_lens.utilities.matrix import composition_scores as their_scores

import lensbridge
from lensbridge.analysis import SVDInterpreter as Ours
from lensbridge.analysis import composition_scores
from lensbridge.model import LensModel
from lensbridge.tensors.factored import FactoredMatrix

pytestmark = pytest.mark.peers


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[LensModel, HookedTransformer]:
    hf_model, classic = twins(request.param)
    return lensbridge.load(hf_model), classic


SHAPES = [((2, 3), 5, 2, 7), ((), 6, 6, 6), ((4,), 3, 8, 5), ((3,), 8, 2, 8)]


@pytest.mark.parametrize(("leading", "l", "m", "r"), SHAPES)
def test_the_algebra(leading: tuple[int, ...], l: int, m: int, r: int) -> None:
    factors = rand(*leading, l, m), rand(*leading, m, r)
    ours, theirs = FactoredMatrix(*factors), Theirs(*factors)
    for name in ("ldim", "mdim", "rdim", "shape", "ndim", "has_leading_dims"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert torch.equal(ours.AB, theirs.AB)
    assert_close(ours.S, theirs.S)
    for name in ("U", "V"):
        assert getattr(ours, name).shape == getattr(theirs, name).shape
        assert_close(getattr(ours, name).abs(), getattr(theirs, name).abs())
    assert ours.Vh.shape == theirs.V.shape
    assert_close(ours.norm(), theirs.norm())
    assert_close(ours.collapse_l().abs(), theirs.collapse_l().abs())
    assert_close(ours.collapse_r().abs(), theirs.collapse_r().abs())
    assert_close(ours.make_even().AB, theirs.make_even().AB)
    assert_close(ours.get_corner(2), theirs.get_corner(2))
    assert_close(ours.unsqueeze(0).AB, theirs.unsqueeze(0).AB)
    right, left, vector = rand(r, 4), rand(4, l), rand(r)
    for mine, other in (
        (ours @ right, theirs @ right), (left @ ours, left @ theirs), (ours.T, theirs.T),
        (ours @ FactoredMatrix(right, right.mT), theirs @ Theirs(right, right.mT)),
        (2 * ours, 2 * theirs),
    ):  # fmt: skip
        assert_close(mine.AB, other.AB)
    assert_close(ours @ vector, theirs @ vector)
    if l == r:
        assert_close(ours.eigenvalues.shape, theirs.eigenvalues.shape)
        for power in (1, 2, 3):
            sums = ((one.eigenvalues**power).sum(-1) for one in (ours, theirs))
            assert_close(*sums)


@pytest.mark.parametrize(
    "index",
    [1, (0, 2), (slice(None), 1), ..., None, torch.tensor([1, 0]), (0, 1, 2, 3), (0, 1, 2),
     (slice(None), slice(None), 3), (1, slice(None), slice(2), slice(3, 5)), (0, 1, 4, -2)],
    ids=str,
)  # fmt: skip
def test_indices(index: Any) -> None:
    factors = rand(2, 3, 5, 2), rand(2, 3, 2, 7)
    expected = Theirs(*factors)[index]
    found = FactoredMatrix(*factors)[index]
    assert found.shape == expected.shape
    assert_close(found.AB, expected.AB)


def test_circuits(pair: tuple[LensModel, HookedTransformer]) -> None:
    ours, theirs = pair
    for name in ("QK", "OV"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.shape == other.shape
        assert_close(mine.AB, other.AB)
        assert_close(mine[1, 2].AB, other[1, 2].AB)
    for mode in "QKV":
        found = ours.all_composition_scores(mode)
        assert_close(found.scores, theirs.all_composition_scores(mode).detach())
    assert ours.all_head_labels() == ours.all_head_labels == theirs.all_head_labels()
    expected = their_scores(theirs.OV, theirs.QK)
    assert_close(composition_scores(ours.OV, ours.QK), expected)


def test_accumulated_biases(pair: tuple[LensModel, HookedTransformer]) -> None:
    ours, theirs = pair
    if theirs.cfg.use_normalization_before_and_after or theirs.cfg.num_experts:
        pytest.skip("these have no biases, and their copy no b_out")
    parallel = theirs.cfg.parallel_attn_mlp  # where an MLP does not read what attention adds
    for layer in range(3):
        for how in ({}, {"include_mlp_biases": False}, {"mlp_input": True}):
            if "mlp_input" in how and (layer == 2 or parallel):
                continue
            assert_close(ours.accumulated_bias(layer, **how), theirs.accumulated_bias(layer, **how))


def test_directions(pair: tuple[LensModel, HookedTransformer]) -> None:
    ours, theirs = pair
    for ids in (torch.tensor([3, 4]), torch.tensor([[3, 4], [5, 6]]), 7, torch.tensor(7)):
        found = ours.tokens_to_residual_directions(ids)
        assert torch.equal(found, theirs.tokens_to_residual_directions(ids))


@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_singular_vectors(pair: tuple[LensModel, HookedTransformer], kind: str) -> None:
    ours, theirs = pair
    if "blocks.1.ln2.w" not in dict(theirs.named_parameters()) and kind == "w_in":
        pytest.skip("their w_in is without the gain of the norm that attention and MLP share")
    params = SVDInterpreter(theirs).params
    if kind != "OV" and f"blocks.1.mlp.{kind.replace('w', 'W')}" not in params:
        pytest.skip("their reading wants one dense MLP")
    if kind == "OV" and "blocks.1.attn.W_V" not in params:
        pytest.skip("they do not know grouped heads here")
    asked = {"layer_index": 1, "num_vectors": 5, "head_index": 2 if kind == "OV" else None}
    found = Ours(ours).get_singular_vectors(kind, **asked)
    expected = SVDInterpreter(theirs).get_singular_vectors(kind, **asked)
    assert found.shape == expected.shape == (97, 1, 5)
    assert_close(found.abs(), expected.abs(), rtol=1e-3, atol=1e-4)
