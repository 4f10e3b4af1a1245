"""Heatmaps, curves and markup: what a picture says, and what it refuses."""

from typing import Any
from xml.etree import ElementTree

import pytest

from lensbridge.viz import Curve, Heatmap, Scale
from lensbridge.viz.markup import plain, visible


def grid_of(*values: float | None, **how: Any) -> Heatmap:
    columns = [str(i) for i in range(len(values))]
    given = {"title": "t", "rows": ["0"], "columns": columns, "scale": Scale(2.0), **how}
    return Heatmap(values=[values], **given)


def cells_of(picture: Heatmap) -> list[dict[str, str]]:
    root = ElementTree.fromstring(picture.svg())
    groups = [group for group in root.iter("g") if group.get("class") == "cell"]
    return [group.find("rect").attrib for group in groups]  # type: ignore[union-attr]


def test_colour_says_sign_and_size() -> None:
    minus, none, plus, beyond = cells_of(grid_of(-1.0, 0.0, 1.0, 5.0))
    assert (minus["class"], plus["class"]) == ("minus", "plus")
    assert minus["fill-opacity"] == plus["fill-opacity"] == "0.5"
    assert (none["fill-opacity"], beyond["fill-opacity"]) == ("0", "1")


def test_a_missing_value_leaves_no_cell() -> None:
    assert len(cells_of(grid_of(1.0, None, 1.0))) == 2


def test_a_scale_holds_the_largest_value_of_all_grids() -> None:
    assert Scale.around_zero([[1.0, None]], [[-3.0]]).limit == 3.0
    assert Scale.around_zero([[0.1]], least=1.0).limit == 1.0


def test_labels_are_escaped_and_spaces_visible() -> None:
    assert visible(" a\n") == "·a↵"
    svg = grid_of(1.0, columns=["<script>&"]).svg()
    assert "<script" not in svg
    assert plain("<script>&") in svg
    assert ElementTree.fromstring(svg).tag == "svg"


@pytest.mark.parametrize("wrong", [{"columns": ["a"]}, {"rows": ["a", "b"]}])
def test_labels_that_do_not_fit_are_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        grid_of(1.0, 2.0, **wrong)


def test_a_scale_without_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="limit above 0"):
        Scale(0.0)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        grid_of(float("nan"))
    shape = {"axes": ("x", "y"), "split": 1, "sides": ("a", "b"), "reference": (1.0, "r")}
    with pytest.raises(ValueError, match="negative or not finite"):
        Curve("t", [1.0, float("inf")], ["a", "b"], **shape)
    with pytest.raises(ValueError, match="labels for"):
        Curve("t", [1.0], ["a", "b"], **shape)
