"""A sweep over pairs of prompts: each pair as swept alone, resumed, with statistics over pairs."""

import copy
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import lensbridge
from lensbridge.errors import InputError
from lensbridge.experiments import LogitDiff
from lensbridge.harvest.callables import Recogniser
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


def place(token: int) -> Any:
    """A metric that keeps a number."""
    return lambda logits: logits[0, -1, token]


@dataclass(frozen=True)
class Scaled:
    """A metric that is an object."""

    by: float

    def __call__(self, logits: Any) -> Any:
        return self.of(logits[0, -1])

    def of(self, last: Any) -> Any:
        return last[5] * self.by


class Halved(Scaled):
    """Another, which differs in a method."""

    def of(self, last: Any) -> Any:
        return last[5] * self.by / 2


TARGET = 3


def test_another_metric_is_told_by_what_changed(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swept(metric: Any, folder: str, **options: Any) -> Any:
        cells = [(("resid_pre", 2), (0, -1))]
        return lensbridge.sweep_dataset(model, PAIRS, cells, metric, tmp_path / folder, **options)

    def of_global(logits: Any) -> Any:
        return logits[0, -1, TARGET]

    swept(place(3), "closure")
    swept(place(3), "closure")
    with pytest.raises(InputError, match=r"metric\.uses\.token is 3 there and 4 here"):
        swept(place(4), "closure")
    with pytest.raises(InputError, match=r"metric\.code is"):
        swept(lambda logits: logits[0, -2, 3], "closure")
    swept(of_global, "global")
    monkeypatch.setattr(sys.modules[__name__], "TARGET", 4)
    with pytest.raises(InputError, match=r"metric\.uses\.TARGET is 3 there and 4 here"):
        swept(of_global, "global")
    swept(Scaled(2.0), "object")
    with pytest.raises(InputError, match=r"metric\.has\.by"):
        swept(Scaled(3.0), "object")
    with pytest.raises(InputError, match=r"metric\.does\.of\.code"):
        swept(Halved(2.0), "object")
    swept(LogitDiff(" Paris", " Istanbul"), "published")
    with pytest.raises(InputError, match=r'metric\.has\.wrong is " Istanbul" there'):
        swept(LogitDiff(" Paris", " Tokyo"), "published")
    weights = torch.ones(model.cfg.d_vocab)
    swept(lambda logits: logits[0, -1] @ weights, "tensor")
    weights[0] = 2
    with pytest.raises(InputError, match=r"metric\.uses\.weights\.sha256"):
        swept(lambda logits: logits[0, -1] @ weights, "tensor")


def test_another_model_is_refused(model: Any, tmp_path: Path) -> None:
    native = copy.deepcopy(model.hf_model)
    with torch.no_grad():
        native.transformer.h[0].mlp.c_fc.bias += 1
    other = lensbridge.load(native, tokenizer=model.tokenizer)
    cells = [(("resid_pre", 2), (0, -1))]
    lensbridge.sweep_dataset(model, PAIRS, cells, metric, tmp_path)
    with pytest.raises(InputError, match=r"model\.sha256_of_some_weights"):
        lensbridge.sweep_dataset(other, PAIRS, cells, metric, tmp_path)


def test_a_metric_of_unknown_objects_needs_an_identity(model: Any, tmp_path: Path) -> None:
    source, cells = iter(range(100)), [(("resid_pre", 2), (0, -1))]

    def uncertain(logits: Any) -> Any:
        return logits[0, -1, 3] + 0 * next(source)

    lensbridge.sweep_dataset(model, PAIRS, cells, uncertain)  # nothing is written
    with pytest.raises(InputError, match=r"metric uses source, of type range_iterator.*identity="):
        lensbridge.sweep_dataset(model, PAIRS, cells, uncertain, tmp_path)
    lensbridge.sweep_dataset(model, PAIRS, cells, uncertain, tmp_path, identity="first")
    with pytest.raises(InputError, match='metric is "first" there and "second" here'):
        lensbridge.sweep_dataset(model, PAIRS, cells, uncertain, tmp_path, identity="second")


def test_code_is_recognised_whatever_the_order_of_its_sets() -> None:
    code = place.__code__
    sets = (frozenset(order) for order in ([8, 0], [0, 8]))
    one, other = (code.replace(co_consts=(*code.co_consts, each)) for each in sets)
    assert repr(one.co_consts) != repr(other.co_consts)
    found = [FunctionType(given, {}) for given in (one, other)]
    assert Recogniser("metric").of(found[0]) == Recogniser("metric").of(found[1])


def test_functions_that_call_themselves_are_recognised() -> None:
    def down(number: int) -> int:
        return number and down(number - 1)

    told = Recogniser("metric").of(down)
    assert told["uses"] == {"down": "itself"}
    assert Recogniser("metric").of(torch.nn.functional.relu) == "torch.nn.functional.relu"
    assert Recogniser("metric").of(partial(max, 3)) == {
        "function": "builtins.max",
        "with": [3, {}],
    }
