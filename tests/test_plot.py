"""`plot`: any numbers with labels, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import marks, texts

from lensbridge.errors import InputError
from lensbridge.viz import Bars, ColouredText, Heatmap, Histogram, Lines, Panels, Picture, plot
from lensbridge.viz.drawing import MOST_BARS, MOST_CELLS, MOST_PANELS

KINDS: dict[str, type[Picture]] = {
    "heatmap": Heatmap,
    "lines": Lines,
    "bars": Bars,
    "histogram": Histogram,
    "text": ColouredText,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_one_axis(kind: Any) -> None:
    picture = plot([1.0, -2.0, 3.0], x=["a", "b", "c"], kind=kind, title="T", unit="logits")
    assert type(picture) is KINDS[kind]
    assert "T" in texts(picture.svg())
    assert picture.fragment()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_the_number_of_axes_chooses_the_kind(shape: list[int]) -> None:
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    picture = plot(values)
    assert type(picture) is (Lines, Heatmap, Panels)[len(shape) - 1]
    found = [float(mark.tip.rpartition(": ")[2]) for mark in marks(picture.svg())]
    assert sorted(found) == sorted(values.flatten().tolist())


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16),
        torch.tensor([[0.5, -2.0]], requires_grad=True),
        np.array([[0.5, -2.0]], dtype=np.float16),
        [[0.5, -2.0]],
        [torch.tensor([0.5, -2.0])],
        ((0.5, -2),),
    ],
)
def test_numbers_of_all_sorts_are_drawn(values: Any) -> None:
    tips = [mark.tip for mark in marks(plot(values, axes=("", "")).svg())]
    assert tips == ["0, 0: 0.5", "0, 1: -2"]


def test_labels_go_where_they_belong() -> None:
    picture = plot(
        torch.zeros(2, 1, 3),
        x=["The", " cat", " sat"],
        y=["L0"],
        z=["one", "two"],
        axes=("head", "layer", "position"),
    )
    assert isinstance(picture, Panels)
    tips = [mark.tip for mark in marks(picture.svg())]
    assert tips[:3] == [f"layer L0, position {t}: 0" for t in ("The", "·cat", "·sat")]
    assert {"head one", "head two"} <= set(texts(picture.svg()))


def test_a_mapping_is_lines_by_name() -> None:
    picture = plot({"train": [1.0, 2.0], "test": torch.tensor([2.0, 1.0])}, unit="accuracy")
    assert isinstance(picture, Lines)
    assert picture.series == {"train": [1.0, 2.0], "test": [2.0, 1.0]}
    assert "accuracy" in texts(picture.svg())


def test_what_is_not_finite_leaves_a_hole() -> None:
    values = [[1.0, float("nan")], [float("inf"), 2.0]]
    assert [m.tip[-1] for m in marks(plot(values).svg())] == ["1", "2"]


def test_a_large_matrix_is_drawn() -> None:
    picture = plot(torch.randn(120, 130, generator=torch.manual_seed(0)))
    assert not marks(picture.svg())
    assert "<image" in picture.svg()


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        ("text", {}, "Numbers are drawn, not text"),
        (3.0, {}, "A tensor, an array or lists"),
        (None, {}, "A tensor, an array or lists"),
        ([], {}, r"no numbers to draw: the shape is \[0\]"),
        (torch.zeros(2, 0), {}, r"no numbers to draw: the shape is \[2, 0\]"),
        ([[1.0], [1.0, 2.0]], {}, "different lengths"),
        (torch.zeros(1, 1, 1, 1), {}, "One to three axes"),
        ([1.0, 2.0], {"x": ["a"]}, "x is a list with a label for each of 2 entries, not 1"),
        ([1.0], {"x": "a"}, "not a text"),
        ([[1.0]], {"y": ["a", "b"]}, "y is a list"),
        ([1.0], {"kind": "pie"}, "one of 'heatmap', 'lines', 'bars', 'histogram', 'text'"),
        ([[1.0]], {"kind": "bars"}, "draws one axis"),
        ([[1.0]], {"kind": "text", "x": ["a"]}, "draws one axis"),
        ([1.0], {"kind": "text"}, "to_str_tokens"),
        ([float("nan")], {"kind": "bars"}, "1 of 1 values are not finite"),
        ([float("nan")], {}, "no finite numbers"),
        ([0.0] * (MOST_BARS + 1), {"kind": "bars"}, "choose the largest"),
        (torch.zeros(MOST_PANELS + 1, 1, 1), {}, str(MOST_PANELS)),
        (torch.zeros(1001, MOST_CELLS // 1000), {}, "A picture has up to"),
        (torch.zeros(2, 2, 2), {"kind": "lines"}, "draws one axis"),
        ([[1.0], [2.0]], {"kind": "lines", "y": ["a", "a"]}, r"differ; \['a'\] occur"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot(values, **how)


def test_a_picture_is_given_back_and_a_result_draws_itself() -> None:
    class Result:
        def plot(self, title: str = "own") -> Picture:
            return Bars(title, [1.0], ["a"])

    picture = plot([1.0])
    assert plot(picture) is picture
    assert plot(Result()).title == "own"
    assert plot(Result(), title="T").title == "T"
