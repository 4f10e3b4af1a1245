"""What patching is given: cells as rows, names in other forms, setters, and numbers to compare."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge import patching as P
from lensbridge.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CLEAN, CORRUPTED = tokens(4, 5), tokens(4, 5, seed=1)
RESID = (P.layer_pos_patch_setter, "resid_pre")


def metric(logits: Tensor) -> Tensor:
    return logits.softmax(-1)[:, -1, 7].mean()


def per_example(logits: Tensor) -> Tensor:
    return logits.softmax(-1)[:, -1, 7]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return lensbridge.load(build(Shape("gpt2", dtype=torch.float64)))


@pytest.fixture(scope="module")
def given(model: LensModel) -> Any:
    return model, CORRUPTED, model.run_with_cache(CLEAN)[1]


@pytest.mark.parametrize("rows", [[(1, 4), (0, 0)], np.array([[1, 4], [0, 0]])], ids=type)
def test_cells_as_rows_of_numbers(given: Any, rows: Any) -> None:
    whole = P.get_act_patch_resid_pre(*given, metric)
    found = P.generic_activation_patch(*given, metric, *RESID, index_df=rows, baseline=True)
    torch.testing.assert_close(found.values, torch.stack([whole[1, 4], whole[0, 0]]))
    assert found.grid.axis_names == ("layer", "index_1")


@pytest.mark.parametrize("rows", [[], [(1, 4), (0,)]], ids=str)
def test_rows_that_are_no_cells(given: Any, rows: Any) -> None:
    with pytest.raises(InputError, match="equal length, with the layer first"):
        P.generic_activation_patch(*given, metric, *RESID, index_df=rows)


@pytest.mark.parametrize("name", ["z", "hook_z", "attn.hook_z", "blocks.{i}.attn.hook_z"])
def test_an_activation_by_any_of_its_names(given: Any, name: str) -> None:
    setter = P.layer_pos_head_vector_patch_setter
    axes = ("layer", "pos", "head")
    found = P.generic_activation_patch(*given, metric, setter, name, axes)
    torch.testing.assert_close(found, P.get_act_patch_attn_head_out_by_pos(*given, metric))


def test_a_point_of_one_layer_says_how_to_write_it(given: Any) -> None:
    with pytest.raises(InputError, match=r"Write 'blocks\.\{i\}\.hook_resid_pre'"):
        P.generic_activation_patch(
            *given, metric, RESID[0], "blocks.0.hook_resid_pre", ("layer", "pos")
        )


@pytest.mark.parametrize(
    ("setter", "name", "axes"),
    [
        (P.layer_head_vector_patch_setter, "resid_pre", ("layer", "pos")),
        (P.layer_head_pattern_patch_setter, "z", ("layer", "pos")),
        (P.layer_pos_patch_setter, "pattern", ("layer", "dest_pos")),
    ],
)
def test_a_setter_for_other_axes_would_write_elsewhere(
    given: Any, setter: Any, name: str, axes: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match=f"{setter.__name__} is for b "):
        P.generic_activation_patch(*given, metric, setter, name, axes)


def test_what_is_no_setter_and_no_cache(given: Any, model: LensModel) -> None:
    with pytest.raises(InputError, match="patch_setter is a function"):
        P.generic_activation_patch(*given, metric, None, "resid_pre", ("layer", "pos"))
    with pytest.raises(InputError, match=r"Clean activations .* got a Tensor"):
        P.get_act_patch_resid_pre(model, CORRUPTED, model(CLEAN), metric)
    assert model.engine.is_idle


def test_runs_that_are_padded_at_other_places(model: LensModel) -> None:
    """Rows of other lengths that padding makes equally long do not correspond."""
    mask = torch.ones_like(CLEAN)
    other = mask.clone()
    other[1, :2] = 0
    runs = [{"input_ids": CLEAN, "attention_mask": one} for one in (mask, other)]
    told = "Example 1 has 5 positions in the clean run and 3 in the corrupted one"
    _, clean = model.run_with_cache(runs[0])
    for corrupted in (runs[1], {**runs[1], "input_ids": CORRUPTED}):
        with pytest.raises(InputError, match=told):
            P.get_act_patch_resid_pre(model, corrupted, clean, metric)
        with pytest.raises(InputError, match=told):
            model.sweep(corrupted, [(("z", 0), (slice(None), 2), clean)], metric)
        with pytest.raises(InputError, match=told):
            P.path_patch(model, runs[0], corrupted, "a0.h1", "logits", metric)
    _, alike = model.run_with_cache(runs[1])
    assert P.get_act_patch_resid_pre(model, runs[1], alike, metric).shape == (2, 5)
    assert model.engine.is_idle


def test_clean_numbers_by_the_metrics_names(given: Any, model: LensModel) -> None:
    metrics = {"prob": metric, "largest": torch.max}
    result = P.get_act_patch_resid_pre(*given, metrics, baseline=True)
    clean = {name: one(model(CLEAN)) for name, one in metrics.items()}
    wanted = result.normalized(torch.stack(list(clean.values())))
    assert torch.equal(result.normalized(clean), wanted)
    assert torch.equal(result["prob"].normalized(clean), wanted[0])
    with pytest.raises(InputError, match="clean_baseline lacks largest"):
        result.normalized({"prob": 1.0})


def test_statistics_of_a_model_in_half_precision() -> None:
    """Metrics keep the precision of a float32 at least, whatever the model computes in."""
    native = build(Shape("gpt2", dtype=torch.bfloat16))
    model = lensbridge.load(native)
    _, clean = model.run_with_cache(CLEAN)
    result = P.get_act_patch_resid_pre(
        model, CORRUPTED, clean, per_example, reduce="none", baseline=True
    )
    assert result.values.dtype == torch.float32
    low, high = result.bootstrap_ci(200)
    assert (low <= result.mean() + 1e-6).all()
    assert (result.mean() <= high + 1e-6).all()


def test_intervals_do_not_depend_on_how_many_cells_there_are() -> None:
    """Cells are drawn for in parts where there are many."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 100, 3, generator=generator)
    grid = P.Grid.over(("layer", "pos"), [range(40), range(100)])
    result = P.PatchingResult(values, grid, ["metric"], False)
    low, high = result.bootstrap_ci(2000, seed=3)
    one = P.PatchingResult(values[7:8], P.Grid.over(("layer", "pos"), [[7], range(100)]), [], False)
    for whole, part in zip((low, high), one.bootstrap_ci(2000, seed=3), strict=True):
        assert whole.shape == (40, 100)
        torch.testing.assert_close(whole[7], part[0])
