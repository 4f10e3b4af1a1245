"""A sweep over pairs of prompts: each pair as swept alone, resumed, with statistics over pairs."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import lensbridge
from lensbridge.errors import InputError
from lensbridge.patching import get_act_patch_mlp_out, get_act_patch_resid_pre

PLACES = ["Eiffel Tower", "Galata Tower", "Meiji Shrine", "Eiffel Tower"]
PAIRS = [
    (f"The {one} is in the city of", f"The {other} is in the city of", number)
    for number, (one, other) in enumerate(zip(PLACES, PLACES[1:] + PLACES[:1], strict=True))
]


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


def metric(logits: Any, pair: Any) -> Any:
    return logits[0, -1, pair[2]] - logits[0, -1, pair[2] + 1]


def alone(model: Any, function: Any, pair: Any) -> Any:
    _, cache = model.run_with_cache(pair[0])
    return function(model, pair[1], cache, lambda logits: metric(logits, pair))


def test_each_pair_has_what_it_has_alone(model: Any) -> None:
    result = lensbridge.sweep_dataset(model, PAIRS, get_act_patch_resid_pre, metric)
    each = torch.stack([alone(model, get_act_patch_resid_pre, pair) for pair in PAIRS], -1)
    near = {"rtol": 1e-4, "atol": 1e-5}  # batches of cells round differently
    torch.testing.assert_close(result.values, each, **near)
    torch.testing.assert_close(result.mean(), each.mean(-1), **near)
    torch.testing.assert_close(result.stderr(), each.std(-1) / len(PAIRS) ** 0.5, **near)
    assert result.axis_names == ["layer", "pos"]


def test_cells_of_ones_own(model: Any) -> None:
    cells = [(("resid_pre", 2), (0, slice(1, 4))), (("mlp_out", 0), (0, -1))]
    result = lensbridge.sweep_dataset(model, PAIRS, cells, metric)
    for number, pair in enumerate(PAIRS):
        _, cache = model.run_with_cache(pair[0])
        for i, (point, index) in enumerate(cells):

            def put(value: Any, hook: Any, index: Any = index, source: Any = cache) -> Any:
                value = value.clone()
                value[index] = source[hook.name][index]
                return value

            logits = model.run_with_hooks(pair[1], fwd_hooks=[(point, put)])
            torch.testing.assert_close(result.values[i, number], metric(logits, pair))


def test_finished_pairs_are_not_run_again(model: Any, tmp_path: Path) -> None:
    class PowerCut(Exception):  # noqa: N818
        pass

    def told(number: int, count: int) -> None:
        if number == 1 and not cut:
            cut.append(number)
            raise PowerCut

    cut: list[int] = []
    ran: list[int] = []

    def counted(logits: Any, pair: Any) -> Any:
        ran.append(pair[2])
        return metric(logits, pair)

    with pytest.raises(PowerCut):
        lensbridge.sweep_dataset(model, PAIRS, get_act_patch_mlp_out, counted, tmp_path, told=told)
    journal = tmp_path / "pairs.jsonl"
    journal.write_bytes(journal.read_bytes() + b'\n{"pair": 2, "sha')  # a line cut off
    ran.clear()
    result = lensbridge.sweep_dataset(model, PAIRS, get_act_patch_mlp_out, counted, tmp_path)
    assert set(ran) == {2, 3}
    each = torch.stack([alone(model, get_act_patch_mlp_out, pair) for pair in PAIRS], -1)
    torch.testing.assert_close(result.values, each, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"another sweep: pairs\.count is 4 there and 3 here"):
        lensbridge.sweep_dataset(model, PAIRS[:3], get_act_patch_mlp_out, counted, tmp_path)


def test_wrong_pairs(model: Any) -> None:
    with pytest.raises(InputError, match="pairs is empty"):
        lensbridge.sweep_dataset(model, [], get_act_patch_mlp_out, metric)
    with pytest.raises(InputError, match="Pair 0 is 'text'"):
        lensbridge.sweep_dataset(model, ["text"], get_act_patch_mlp_out, metric)
    uneven = [*PAIRS[:1], ("The Eiffel Tower is", "The Galata Tower is", 0)]
    with pytest.raises(InputError, match="Pair 1 has a grid of"):
        lensbridge.sweep_dataset(model, uneven, get_act_patch_mlp_out, metric)


def test_uneven_pairs_are_told_at_once(model: Any) -> None:
    told: list[int] = []
    uneven = [*PAIRS[:1], ("The Eiffel Tower is", "The Galata Tower is", 0), *PAIRS]
    with pytest.raises(InputError, match="Pair 1 has a grid of"):
        lensbridge.sweep_dataset(
            model, uneven, get_act_patch_mlp_out, metric, told=lambda one, _: told.append(one)
        )
    assert told == [0]


def test_a_partial_function_is_known_by_the_one_in_it(model: Any, tmp_path: Path) -> None:
    cells, pairs = partial(get_act_patch_mlp_out), PAIRS[:1]
    found = lensbridge.sweep_dataset(model, pairs, cells, metric, tmp_path)
    again = lensbridge.sweep_dataset(model, pairs, cells, metric, tmp_path)
    assert torch.equal(found.values, again.values)
    with pytest.raises(InputError, match="cells is"):
        lensbridge.sweep_dataset(model, pairs, partial(get_act_patch_resid_pre), metric, tmp_path)


def test_what_is_no_pair_and_no_folder(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Pair 0 is 3"):
        lensbridge.sweep_dataset(model, [3], get_act_patch_mlp_out, metric)  # type: ignore[list-item]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        lensbridge.sweep_dataset(model, PAIRS, get_act_patch_mlp_out, metric, tmp_path / "file")
