"""`examples=`: an intervention edits some rows of a batch, and rows read each other.

The oracle is the bare model, one row at a time, under plain PyTorch hooks.
"""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import InputError
from lensbridge.interventions import (
    Add,
    Intervention,
    Mean,
    Noise,
    Replace,
    Resample,
    Scale,
    Steer,
    Swap,
    Zero,
    from_json,
    to_json,
)

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("gpt2", "llama", "neox")
LENGTH, LAYERS = 6, 3


@cache
def pair(family: str) -> tuple[lensbridge.LensModel, Any, Shape]:
    shape = Shape(family, layers=LAYERS, dtype=torch.float64)
    return lensbridge.load(build(shape)), build(shape), shape


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_has_another_target_layer(family: str) -> None:
    """A patchscope: one state of a prompt goes into another layer of the target in every row."""
    model, bare, shape = pair(family)
    target, state = tokens(1, LENGTH), torch.randn(shape.d_model, dtype=torch.float64)
    rows = [Replace(("mlp_out", i), state, positions=-2, examples=i) for i in range(LAYERS)]
    with torch.no_grad():
        found = model.run_with_interventions(target.repeat(LAYERS, 1), rows)

    def put(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[:, -2] = state
        return changed

    for i in range(LAYERS):
        wanted = run_changing(bare, [(Layer(bare, family, i).mlp, "output", put)], target)
        near(found[i], wanted[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_reads_another_one(family: str) -> None:
    model, bare, _ = pair(family)
    ids, kept = tokens(3, LENGTH), {}
    read = Swap(("mlp_out", 1), examples=[2], partners=[0], positions=4, source_positions=1)
    with torch.no_grad():
        found = model.run_with_interventions(ids, read)

    def keep(whole: Tensor) -> Tensor:
        kept["state"] = whole[:, 1].clone()
        return whole

    def put(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[:, 4] = kept["state"]
        return changed

    mlp = Layer(bare, family, 1).mlp
    near(found[0], run_changing(bare, [(mlp, "output", keep)], ids[:1])[0])
    near(found[1], bare(ids[1:2]).logits[0])
    near(found[2], run_changing(bare, [(mlp, "output", put)], ids[2:])[0])
    twice = Swap(("mlp_out", 1), partners=[0, 1, 0], positions=4, source_positions=1)
    moved = Swap(("mlp_out", 1), partners=[1, 1, 1], positions=4, source_positions=4)
    with torch.no_grad():
        near(model.run_with_interventions(ids, twice)[2], found[2])
        same = Swap(("mlp_out", 1), partners=[1, 1, 1], positions=4)
        several = [model.run_with_interventions(ids, one) for one in (moved, same)]
    assert torch.equal(*several)


KINDS = st.sampled_from(
    [
        lambda **at: Zero(("z", 1), heads=[0, 2], **at),
        lambda **at: Scale(("mlp_out", 2), 0.5, **at),
        lambda **at: Steer(("resid_post", 0), torch.arange(28.0), **at),
        lambda **at: Replace(("pattern", 1), 0.25, keys=[0, 1], **at),
        lambda **at: Swap(("resid_pre", 1), torch.ones(1, LENGTH, 28), **at),
        lambda **at: Add(("resid_pre", 2), 1.0, neurons=[1, 2], **at),
    ]
)


@settings(max_examples=25, deadline=None)
@given(
    KINDS,
    st.sampled_from([None, 3, -1, slice(2, None), [1, 4]]),
    st.lists(st.integers(-4, 3), min_size=1, max_size=3, unique_by=lambda i: i % 4),
)
def test_the_chosen_rows_are_as_if_all_were_edited(kind: Any, positions: Any, chosen: Any) -> None:
    model, _, _ = pair("llama")
    ids = tokens(4, LENGTH)
    with torch.no_grad():
        plain, all_edited = model(ids), model.run_with_interventions(ids, kind(positions=positions))
        found = model.run_with_interventions(ids, kind(positions=positions, examples=chosen))
    rows = {i % 4 for i in chosen}
    for row in range(4):
        near(found[row], (all_edited if row in rows else plain)[row])


def test_what_is_given_for_each_example_is_given_for_the_chosen_ones() -> None:
    model, _, shape = pair("llama")
    ids = tokens(4, LENGTH)
    values = torch.randn(2, 1, shape.d_model, dtype=torch.float64)
    _, other = model.run_with_cache(tokens(4, LENGTH, seed=5))
    two = torch.cat([other["resid_post", 1][[2]], other["resid_post", 1][[0]]])
    site = ("resid_post", 1)
    pairs: list[tuple[Intervention, dict[int, Intervention]]] = [
        (
            Replace(site, values, positions=[[1], [4]], examples=[3, 1]),
            {
                3: Replace(site, values[:1], positions=1),
                1: Replace(site, values[1:], positions=4),
            },
        ),
        (
            Swap(site, two, [[2], [3]], positions=[[1], [4]], examples=[2, 0]),
            {
                2: Swap(site, two[:1], 2, positions=1),
                0: Swap(site, two[1:], 3, positions=4),
            },
        ),
        (  # a source with as many examples as the run
            Swap(site, other, examples=[2, 0]),
            {2: Swap(site, two[:1]), 0: Swap(site, two[1:])},
        ),
        (
            Mean(site, over="all", examples=[2], exclude_special_tokens=False),
            {2: Mean(site, over="all", exclude_special_tokens=False)},
        ),
    ]
    with torch.no_grad():
        plain = model(ids)
        for one, alone in pairs:
            found = model.run_with_interventions(ids, one)
            for row in range(4):
                wanted = plain[[row]]
                if row in alone:
                    wanted = model.run_with_interventions(ids[[row]], alone[row])
                near(found[[row]], wanted)


def test_means_and_draws_are_those_of_the_chosen_ones() -> None:
    model, _, _ = pair("gpt2")
    ids = tokens(4, LENGTH)
    with torch.no_grad():
        for kind in (Mean, Resample):
            found = model.run_with_interventions(ids, kind(("mlp_out", 1), examples=[1, 3]))
            alone = model.run_with_interventions(ids[[1, 3]], kind(("mlp_out", 1)))
            near(found[[1, 3]], alone)
        every = model.run_with_interventions(ids, Noise(("mlp_out", 1), 1.0))
        near(
            model.run_with_interventions(ids, Noise(("mlp_out", 1), 1.0, examples=[1, 3]))[[1, 3]],
            every[[1, 3]],
        )


def test_padded_texts() -> None:
    model, _, _ = pair("llama")
    ids, mask = left_padded(3, LENGTH)
    both = {"input_ids": ids, "attention_mask": mask}
    sizes = mask.sum(-1).tolist()
    with torch.no_grad():
        _, cache = model.run_with_cache(both)
        with model.intervene(Swap(("mlp_out", 1), examples=[2], partners=[0], positions=-1)):
            _, edited = model.run_with_cache(both, "mlp_out")
        with model.intervene(Zero(("mlp_out", 1), examples=[1], positions=0)):
            _, zeroed = model.run_with_cache(both, "mlp_out")
    near(edited["mlp_out", 1][2, -1], cache["mlp_out", 1][0, -1])
    assert torch.equal(edited["mlp_out", 1][2, :-1], cache["mlp_out", 1][2, :-1])
    first = LENGTH - sizes[1]
    assert zeroed["mlp_out", 1].norm(dim=-1).eq(0).nonzero().tolist() == [[1, first]]
    with pytest.raises(InputError, match=r"position .* is out of range: example 1 has"):
        model.run_with_interventions(both, Zero(("mlp_out", 1), examples=[1], positions=sizes[1]))


@pytest.mark.parametrize("cached", [True, False])
def test_rows_of_a_generation(cached: bool) -> None:
    model, _, shape = pair("llama")
    ids, steering = tokens(2, LENGTH), torch.randn(shape.d_model, dtype=torch.float64) * 9
    options: Any = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
    options |= {"stop_at_eos": False, "use_past_kv_cache": cached}
    steer = Steer(("resid_post", 1), steering, positions="last")
    found = model.generate(ids, interventions=steer.at(examples=1), **options)
    alone = model.generate(ids, interventions=steer, **options)
    plain = model.generate(ids, **options)
    assert torch.equal(found, torch.stack([plain[0], alone[1]]))
    assert not torch.equal(alone[1], plain[1])
    beams = {**options, "num_beams": 2}
    found = model.generate(ids, interventions=steer.at(examples=1), **beams)
    alone = model.generate(ids[1:], interventions=steer, **beams)
    assert torch.equal(found[1], alone[0])
    read = Swap(("resid_post", 1), examples=[1], partners=[0])
    found, cache = model.generate(ids, interventions=read, return_cache=True, **options)
    assert torch.equal(cache["resid_post", 1][0], cache["resid_post", 1][1])


@pytest.mark.parametrize("exact", [True, False])
def test_a_sweep(exact: bool) -> None:
    model, _, _ = pair("llama")
    ids = tokens(3, LENGTH)
    cells = [
        [Zero(("mlp_out", 0), examples=[0]), Scale(("z", 1), 3.0, heads=1, examples=[2, 1])],
        Swap(("resid_post", 1), examples=[1], partners=[0], positions=4, source_positions=1),
        Zero(("mlp_out", 2), examples=-1, positions=[3]),
    ]
    found = model.sweep(ids, cells, lambda x: x.pow(2).mean((1, 2)), reduce="none", exact=exact)
    with torch.no_grad():
        wanted = [model.run_with_interventions(ids, one).pow(2).mean((1, 2)) for one in cells]
    near(found.values, torch.stack(wanted))


def test_what_does_not_fit() -> None:
    model, _, _ = pair("llama")
    ids = tokens(2, LENGTH)
    bad: list[tuple[Intervention, str]] = [
        (Zero(("z", 1), examples=[0], positions=[[1], [2]]), "2 lists; there are 1"),
        (Zero(("z", 1), examples=[3]), "example 3 is out of range; there are 2"),
        (Swap(("z", 1), examples=[1], partners=[2]), "partner 2 is out of range"),
        (Swap(("z", 1), examples=[1], partners=[0, 1]), "2 partners for 1 examples"),
        (
            Swap(("z", 1), examples=[1], partners=[0], positions=[1, 2], source_positions=3),
            "2 positions of the input cannot be paired with 1",
        ),
        (Replace(("z", 1), torch.zeros(2, 1, 1, 1), examples=[1]), "has to broadcast to"),
    ]
    for one, message in bad:
        with pytest.raises(InputError, match=message):
            model.run_with_interventions(ids, one)
    with pytest.raises(InputError, match="source_positions needs a source or partners"):
        Swap(("z", 1), source_positions=1)


def test_files() -> None:
    several = [
        Zero(("z", 1), examples=[1, -1]),
        Swap(("z", 1), examples=1, partners=[0], source_positions=3, positions=2),
        Zero(("z", 1), examples=torch.tensor([True, False, True])),
    ]
    assert from_json(to_json(several)) == several
    assert several[2].examples == (0, 2)
    assert "examples" not in to_json(Zero(("z", 1)))  # as older versions read it
