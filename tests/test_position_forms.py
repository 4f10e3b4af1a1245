"""Masks of bools and lists for each example, wherever an argument says which positions.

The oracle is the same call with the positions of each text alone, or the whole activation at the
places that the mask marks.
"""

from typing import Any

import numpy as np
import pytest
import torch
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.analysis import logit_lens
from lensbridge.errors import InputError
from lensbridge.interventions import Add, Swap, Zero, causal_trace, from_json, to_json
from lensbridge.tensors.position_forms import TokenMask, as_positions
from lensbridge.tensors.positions import token_positions

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, POINT = 6, ("mlp_out", 1)
FORMS: list[tuple[Any, Any]] = [
    (None, None),
    (3, 3),
    (np.int64(3), 3),
    (torch.tensor(3), 3),
    ("last", "last"),
    (slice(1, None), slice(1, None)),
    (range(3), (0, 1, 2)),
    ([0, -1], (0, -1)),
    (np.array([0, 2]), (0, 2)),
    (torch.tensor([[0], [2]]), ((0,), (2,))),
    ([[0, 1], []], ((0, 1), ())),
    (torch.tensor([True, False, True]), TokenMask(((0, 2),), 3)),
    (np.array([[False, True], [True, True]]), TokenMask(((1,), (0, 1)), 2)),
    ([[False, True], [False, False]], TokenMask(((1,), ()), 2)),
    ([True, False], TokenMask(((0,),), 2)),
]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return lensbridge.load(build(Shape("llama", layers=3, dtype=torch.float64)))


@pytest.mark.parametrize(("given", "wanted"), FORMS)
def test_one_parser(given: Any, wanted: Any) -> None:
    assert as_positions(given) == wanted
    assert as_positions(as_positions(given)) == wanted


def test_tuples() -> None:
    assert as_positions((1, 3)) == (1, 3)
    assert as_positions((1, 3), tuples="slice") == slice(1, 3)
    assert token_positions((1, None, 2), None) == slice(1, None, 2)


@pytest.mark.parametrize("given", ["first", 1.5, [0.5], [[True], [1]], [True, 1], {}, [None], []])
def test_what_means_no_positions(given: Any) -> None:
    with pytest.raises(InputError, match="places is "):
        as_positions(given, "places")


def some(rows: int, width: int, each: int, seed: int = 0) -> Tensor:
    """A mask with as many marks in each row, at other places."""
    drawn = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(rows, width).bool().scatter(1, drawn.topk(each, 1).indices, True)


def test_caches(model: LensModel) -> None:
    ids, mask = tokens(3, LENGTH), some(3, LENGTH, 2)
    _, whole = model.run_with_cache(ids)
    for given in (
        mask,
        mask.numpy(),
        mask.tolist(),
        [row.nonzero()[:, 0].tolist() for row in mask],
    ):
        _, kept = model.run_with_cache(ids, pos_slice=given)
        for name in ("resid_pre", "z", "pattern"):
            value = whole[name, 1].transpose(1, 2) if name == "pattern" else whole[name, 1]
            found = kept[name, 1].transpose(1, 2) if name == "pattern" else kept[name, 1]
            assert torch.equal(found, value[mask].unflatten(0, (3, 2)))
    _, kept = model.run_with_cache(ids, POINT, pos_slice=mask[0])
    assert torch.equal(kept[POINT], whole[POINT][:, mask[0]])
    with pytest.raises(InputError, match=r"is 1 positions of example 1 and 2 of example 0\. Ask"):
        model.run_with_cache(ids[:2], pos_slice=[[0, 1], [2]])
    with pytest.raises(InputError, match=r"shape \[3, 6\], and the batch has \[2, 6\]"):
        model.run_with_cache(ids[:2], pos_slice=mask)
    with pytest.raises(InputError, match="there are 6 positions"):
        model.run_with_cache(ids, pos_slice=[[0], [1], [6]])


def test_padded_caches(model: LensModel) -> None:
    ids, real = left_padded(3, LENGTH)
    given = {"input_ids": ids, "attention_mask": real}
    mask = torch.zeros_like(real).bool()
    mask[:, -1] = True
    mask[torch.arange(3), real.long().argmax(-1)] = True  # the first token of each
    _, whole = model.run_with_cache(given)
    for count in ("tokens", "columns"):
        _, kept = model.run_with_cache(given, POINT, pos_slice=mask, count=count)
        assert torch.equal(kept[POINT], whole[POINT][mask].unflatten(0, (3, 2)))
    wrong = mask.roll(-1, 1)
    if not bool(real[wrong].all()):
        with pytest.raises(InputError, match=r"marks column \d of example \d, which is padding"):
            model.run_with_cache(given, POINT, pos_slice=wrong)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_interventions(family: str) -> None:
    shape = Shape(family, layers=3, dtype=torch.float64)
    model, bare, ids = lensbridge.load(build(shape)), build(shape), tokens(2, LENGTH)
    mask = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.5
    assert mask.sum(-1).unique().numel() == 2  # not as many in each
    with torch.no_grad():
        found = model.run_with_interventions(ids, Zero(POINT, positions=mask))

    def zero(whole: Tensor) -> Tensor:
        return whole.masked_fill(mask[..., None], 0.0)

    wanted = run_changing(bare, [(Layer(bare, family, 1).mlp, "output", zero)], ids)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)

    def metric(logits: Tensor) -> Tensor:
        return logits.pow(2).mean((1, 2))

    cells = [Zero(POINT, positions=mask), Zero(POINT, positions=mask[1])]
    swept = model.sweep(ids, cells, metric, reduce="none", exact=False)
    exact = model.sweep(ids, cells, metric, reduce="none", exact=True)
    torch.testing.assert_close(swept.values, exact.values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(swept[0], metric(found), rtol=1e-9, atol=1e-9)


def test_more_interventions(model: LensModel) -> None:
    ids, mask = tokens(2, LENGTH), some(2, LENGTH, 2)
    lists = [row.nonzero()[:, 0].tolist() for row in mask]
    _, other = model.run_with_cache(tokens(2, LENGTH, seed=4))
    pairs = [
        (Swap(POINT, other, mask, positions=mask), Swap(POINT, other, lists, positions=lists)),
        (Swap(POINT, partners=[1, 0], positions=mask), Swap(POINT, positions=lists)),
        (Zero(("pattern", 1), keys=mask[0]), Zero(("pattern", 1), keys=lists[0])),
        (
            Zero(POINT, positions=mask[:1], examples=[1]),
            Zero(POINT, positions=lists[0], examples=[1]),
        ),
        (Zero(POINT, positions=mask, count="columns"), Zero(POINT, positions=lists)),
    ]
    for one, same in pairs:
        found, wanted = (model.run_with_interventions(ids, each) for each in (one, same))
        assert torch.equal(found, wanted)
        assert from_json(to_json(one)) == [one]
        quiet: Any = {"max_new_tokens": 2, "do_sample": False, "verbose": False}
        made = [model.generate(ids, interventions=each, **quiet) for each in (one, same)]
        assert torch.equal(*made)
    with pytest.raises(InputError, match=r"positions is a mask of bools of shape \[1, 4\]"):
        model.run_with_interventions(ids, Zero(POINT, positions=[True, False, False, True]))
    with pytest.raises(InputError, match="keys are one list for all"):
        model.run_with_interventions(ids, Zero(("pattern", 1), keys=mask))
    with pytest.raises(InputError, match="and marks no token"):
        Zero(POINT, positions=[False] * LENGTH)


def test_padded_interventions(model: LensModel) -> None:
    ids, real = left_padded(3, LENGTH)
    given = {"input_ids": ids, "attention_mask": real}
    mask = torch.zeros_like(real).bool()
    mask[:, -2] = True
    with model.intervene(Add(POINT, 100.0, positions=mask)):
        _, cache = model.run_with_cache(given, "mlp_out")
    assert torch.equal(cache[POINT].mean(-1) > 50, mask)
    with pytest.raises(InputError, match=r"which is padding\. Make it of the ids that are run"):
        model.run_with_interventions(given, Zero(POINT, positions=~real.bool()))


def test_other_places(model: LensModel) -> None:
    ids, mask = tokens(2, LENGTH), some(2, LENGTH, 2)
    lists = [row.nonzero()[:, 0].tolist() for row in mask]
    lens = [logit_lens(model, ids, positions=each).values for each in (mask, lists)]
    assert torch.equal(*lens)
    steer = [
        lensbridge.interventions.steering_vector(
            model, ids, tokens(2, LENGTH, seed=3), POINT, position=each
        )
        for each in (mask, lists)
    ]
    assert torch.equal(steer[0].vector, steer[1].vector)
    grads = [
        model.gradients(ids, POINT, lambda logits: logits.pow(2).sum(), pos_slice=each)[1][POINT]
        for each in (mask, lists)
    ]
    assert torch.equal(*grads)
    _, whole = model.gradients(ids, POINT, lambda logits: logits.pow(2).sum())
    assert torch.equal(grads[0], whole[POINT][mask].unflatten(0, (2, 2)))
    ends = ("resid_pre", 1), ("resid_post", 2)
    maps = [model.jacobian(ids, *ends, positions=each) for each in (mask[0], lists[0])]
    assert torch.equal(*maps)
    traces = [
        causal_trace(model, ids[:1], each, answer=5, samples=2)["mlp_out"]
        for each in (mask[0], lists[0])
    ]
    assert torch.equal(*traces)
    _, cache = model.run_with_cache(ids)
    stacks = [cache.accumulated_resid(pos_slice=each) for each in (mask, lists)]
    assert torch.equal(*stacks)
    assert torch.equal(stacks[0][1], cache["resid_pre", 1][mask].unflatten(0, (2, 2)))
