"""Cells of several edits: each is one run with all of them, in batches as cells of one edit are.

The oracles are the bare model under plain PyTorch hooks, and one run per cell inside
`model.intervene`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import InputError
from lensbridge.interventions import (
    Add,
    Intervention,
    Mean,
    Replace,
    Resample,
    Scale,
    Swap,
    Zero,
)
from lensbridge.patching import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
ALL, LENGTH, LAYERS = slice(None), 6, 4
FAMILIES = ("gpt2", "llama", "neox")


def metric(logits: Tensor) -> Tensor:
    """Reads every position and is not linear."""
    return logits.pow(2).mean((1, 2))


def last(logits: Tensor) -> Tensor:
    return logits[:, -1].pow(2).mean(-1)


def early(logits: Tensor) -> Tensor:
    return logits[:, 2].pow(2).mean(-1)


@cache
def loaded(family: str) -> LensModel:
    return lensbridge.load(build(Shape(family, layers=LAYERS, dtype=torch.float64)))


def alone(model: LensModel, given: Any, cells: Sequence[Sequence[Intervention]], read: Any) -> Any:
    """One run for each cell, inside `model.intervene`."""
    found = []
    for cell in cells:
        with torch.no_grad(), model.intervene(list(cell)):
            found.append(read(model(given)))
    return torch.stack(found)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("read", [metric, last])
def test_windows_of_layers_are_runs_of_the_bare_model(family: str, read: Any) -> None:
    shape = Shape(family, layers=LAYERS, dtype=torch.float64)
    model, bare, ids = loaded(family), build(shape), tokens(2, LENGTH)
    places = [(first, pos) for first in range(LAYERS - 1) for pos in range(LENGTH)]
    windows = [
        [Replace(("mlp_out", layer), 0.5, positions=pos) for layer in (first + 1, first)]
        for first, pos in places
    ]
    found = model.sweep(ids, windows, read, reduce="none", exact=False)
    assert found.engine == "batched"
    assert found.values.shape == (len(places), 2)
    for i, (first, pos) in enumerate(places):

        def half(whole: Tensor, pos: int = pos) -> Tensor:
            changed = whole.clone()
            changed[:, pos] = 0.5
            return changed

        changes = [(Layer(bare, family, first + i).mlp, "output", half) for i in range(2)]
        close(found[i], read(run_changing(bare, changes, ids)))
    close(found.values, alone(model, ids, windows, read))


def test_attention_knockout_by_window() -> None:
    model, ids = loaded("llama"), tokens(1, LENGTH)
    windows = [
        [
            Replace(("attn_scores", layer), float("-inf"), positions=[4, 5], keys=[key])
            for layer in range(first, min(first + 2, LAYERS))
        ]
        for first in range(LAYERS)
        for key in range(4)
    ]
    found = model.sweep(ids, windows, last, reduce="none", baseline=True, exact=False)
    close(found.values, alone(model, ids, windows, last))
    assert (found.effect().abs() > 1e-9).all()


ONE = st.one_of(
    st.builds(
        lambda site, layer, positions, value: Replace((site, layer), value, positions=positions),
        st.sampled_from(["resid_pre", "attn_out", "mlp_out", "resid_post"]),
        st.integers(0, LAYERS - 1),
        st.sampled_from([0, 3, -1, [1, 4], slice(2, None)]),
        st.floats(-1, 1),
    ),
    st.builds(
        lambda layer, head, positions: Zero(("z", layer), heads=head, positions=positions),
        st.integers(0, LAYERS - 1),
        st.integers(0, 3),
        st.sampled_from([None, 0, 3, -1]),
    ),
    st.builds(
        lambda layer, key: Scale(("pattern", layer), 0.5, positions=[3, 5], keys=[key]),
        st.integers(0, LAYERS - 1),
        st.integers(0, 2),
    ),
    st.builds(
        lambda site, layer, positions: Mean((site, layer), over="all", positions=positions),
        st.sampled_from(["mlp_out", "resid_post", "attn_out"]),
        st.integers(0, LAYERS - 1),
        st.sampled_from([3, [2, 5]]),
    ),
    st.builds(
        lambda layer, positions: Swap(("resid_post", layer), positions=positions),
        st.integers(0, LAYERS - 1),
        st.sampled_from([[[1], [4]], [[3, 4], [2, 5]], 2]),
    ),
    st.builds(
        lambda layer, seed: Resample(("mlp_out", layer), seed=seed),
        st.integers(0, LAYERS - 1),
        st.integers(0, 1),
    ),
    st.builds(
        lambda layer, factor: Scale(("resid_post", layer), factor, neurons=[3, 5]),
        st.integers(0, LAYERS - 1),
        st.sampled_from([-1.0, 2.0]),
    ),
)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.lists(st.lists(ONE, min_size=1, max_size=4), min_size=2, max_size=8),
    st.sampled_from([metric, last, early]),
)
def test_any_edits_together(family: str, cells: list[list[Intervention]], read: Any) -> None:
    model, ids = loaded(family), tokens(2, LENGTH)
    wanted = alone(model, ids, cells, read)
    found = model.sweep(ids, cells, read, reduce="none")
    assert found.engine == "batched"
    close(found.values, wanted)
    exact = model.sweep(ids, cells, read, reduce="none", exact=True)
    assert torch.equal(exact.values, wanted)


@pytest.mark.parametrize("read", [metric, last, early])
def test_edits_that_look_at_other_positions(read: Any) -> None:
    """They see what earlier edits changed, after the position that is read and before their own."""
    model, ids = loaded("llama"), tokens(2, LENGTH)

    def mean(layer: int, **at: Any) -> Mean:
        return Mean(("resid_post", layer), over="all", exclude_special_tokens=False, **at)

    cells = [
        [Replace(("mlp_out", 0), 9.0, positions=5), mean(1, positions=2)],
        [Replace(("mlp_out", 0), 9.0, positions=1), mean(LAYERS - 1, positions=-1)],
        *([Zero(("resid_pre", layer), positions=0)] for layer in range(LAYERS)),
        *([mean(layer, positions=[3])] for layer in range(LAYERS)),
    ]
    found = model.sweep(ids, cells, read, reduce="none", exact=False)
    close(found.values, alone(model, ids, cells, read))


def test_edits_of_one_point_act_in_their_order() -> None:
    model, ids = loaded("gpt2"), tokens(1, LENGTH)
    point = ("resid_pre", 1)
    cells = [
        [Scale(point, 2.0, neurons=[0, 1]), Add(point, 1.0, neurons=[1, 2])],
        [Add(point, 1.0, neurons=[1, 2]), Scale(point, 2.0, neurons=[0, 1])],
        [Add(point, 1.0, neurons=[1, 2], positions=3), Scale(point, 2.0, neurons=[0, 1])],
    ]
    found = model.sweep(ids, cells, last, reduce="none", exact=False)
    close(found.values, alone(model, ids, cells, last))
    assert len({round(float(one), 9) for one in found.values}) == 3


def test_padded_texts() -> None:
    model = loaded("llama")
    ids, mask = left_padded(3, LENGTH)
    given = {"input_ids": ids, "attention_mask": mask}
    cells = [
        [Replace(("mlp_out", i), 0.5, positions=[0, -1]), Zero(("z", i + 1), heads=[0, 2])]
        for i in range(LAYERS - 1)
    ]
    found = model.sweep(given, cells, last, reduce="none", exact=False)
    close(found.values, alone(model, given, cells, last))


def test_cells_tuples_and_interventions_may_be_mixed() -> None:
    model, ids = loaded("gpt2"), tokens(1, LENGTH)
    _, clean = model.run_with_cache(tokens(1, LENGTH, seed=7))
    cells: list[Any] = [
        [(("resid_pre", 1), (0, 2), clean), Zero(("z", 2), heads=1)],
        ((("mlp_out", 0), (0, 1), 0.5), (("mlp_out", 3), (0, 4), 0.5)),
        [(("mlp_out", 0), (0, 1), 0.5), (("z", 1), (0, 4, 1), 0.0), (("z", 1), (0, 4, 2), 0.0)],
        (("resid_pre", 1), (0, 2), clean),
        [("resid_pre", 1), (0, 2), clean],
        Cell(("resid_pre", 2), (0, 5), 0.0),
    ]
    found = model.sweep(ids, cells, last, exact=False, reduce="none")
    wanted = [
        [Swap(("resid_pre", 1), clean, positions=2), Zero(("z", 2), heads=1)],
        [Replace(("mlp_out", 0), 0.5, positions=1), Replace(("mlp_out", 3), 0.5, positions=4)],
        [Replace(("mlp_out", 0), 0.5, positions=1), Zero(("z", 1), positions=4, heads=[1, 2])],
        [Swap(("resid_pre", 1), clean, positions=2)],
        [Swap(("resid_pre", 1), clean, positions=2)],
        [Zero(("resid_pre", 2), positions=5)],
    ]
    close(found.values, alone(model, ids, wanted, last))


def test_an_intervention_at_several_points_is_one_cell() -> None:
    model, ids = loaded("llama"), tokens(1, LENGTH)
    cells = [[Zero("attn_out", positions=3)], [Zero("blocks.[12].hook_mlp_out", positions=2)]]
    found = model.sweep(ids, cells, last, reduce="none", exact=False)
    close(found.values, alone(model, ids, cells, last))
    with pytest.raises(InputError, match=r"means 4: .* for all of them in one run, a list of it"):
        model.sweep(ids, cells[0], last)


def test_names_of_cells() -> None:
    model, ids = loaded("gpt2"), tokens(1, LENGTH)
    cells = {
        "nothing": [],
        "early": [Zero(("mlp_out", 0)), Zero(("mlp_out", 1))],
        "late": Zero(("mlp_out", 3)),
    }
    found = model.sweep(ids, cells, last, reduce="none", baseline=True)
    assert found.axis_labels == {"cell": ("nothing", "early", "late")}
    assert found.effect()[0] == 0
    assert found.effect()[1].abs() > 0
    assert "early" in found.plot().svg()
    table = found.to_dataframe()
    assert list(table["name"]) == ["nothing", "early", "late"]
    close(found.values, model.sweep(ids, list(cells.values()), last, reduce="none").values)


def test_early_layers_are_shared() -> None:
    """Layers before a window, and positions before its first one, are not run for each cell."""
    model = lensbridge.load(build(Shape("gpt2", layers=LAYERS)))
    seen = [0] * LAYERS

    def count(i: int) -> Any:
        def hook(_: nn.Module, args: Any, out: Tensor) -> None:
            seen[i] += out.shape[0] * out.shape[1]

        return hook

    for i, block in enumerate(model.hf_model.transformer.h):  # type: ignore[union-attr,arg-type]
        block.mlp.register_forward_hook(count(i))
    heads = [Zero(("z", 2), positions=5, heads=head) for head in range(4)]
    windows = [[one, Zero(("z", 3), positions=[4, 5], heads=0)] for one in heads]
    model.sweep(tokens(1, LENGTH), windows, last, reduce="mean")
    # the unpatched run, the one that finds the prefix, four cells and a control row
    assert seen[0] == seen[1] == 2 * LENGTH - 1
    assert seen[2] <= 2 * LENGTH - 1 + 5 * 2


@pytest.mark.parametrize("cell", ["resid_pre", [Zero(("z", 1)), "z"], [3], object()])
def test_what_is_no_cell_is_refused(cell: Any) -> None:
    with pytest.raises(InputError, match=r"is no cell\. Pass a Cell, a tuple .* or a list of"):
        loaded("gpt2").sweep(tokens(1, LENGTH), [cell], last)
