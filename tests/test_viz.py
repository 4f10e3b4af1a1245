"""Heatmaps: what is drawn is what the numbers say, in every kind of file."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import (
    MINUS,
    PLUS,
    SVG,
    blend,
    channels,
    contrast,
    marks,
    parsed,
    pixels,
    styles,
    texts,
)

from lensbridge.viz import Heatmap, Scale
from lensbridge.viz.across import TURNED, Across
from lensbridge.viz.heatmap import MOST_DRAWN
from lensbridge.viz.labels import width
from lensbridge.viz.markup import plain, visible
from lensbridge.viz.theme import DARK, LIGHT

NUMBERS = st.one_of(st.none(), st.floats(-1e6, 1e6, allow_nan=False))


def grid_of(*values: float | None, **how: Any) -> Heatmap:
    columns = [str(i) for i in range(len(values))]
    given = {"title": "t", "rows": ["0"], "columns": columns, "scale": Scale(2.0), **how}
    return Heatmap(values=[values], **given)


def test_colour_says_sign_and_opacity_size() -> None:
    minus, none, plus, beyond = marks(grid_of(-1.0, 0.0, 1.0, 5.0).svg())
    assert (minus.fill, plus.fill) == (MINUS, PLUS)
    assert [m.opacity for m in (minus, none, plus, beyond)] == [0.5, 0.0, 0.5, 1.0]


@given(st.data(), st.integers(1, 5), st.integers(1, 5))
def test_every_number_is_one_cell_in_its_place(data: Any, rows: int, columns: int) -> None:
    lines = st.lists(NUMBERS, min_size=columns, max_size=columns)
    values = data.draw(st.lists(lines, min_size=rows, max_size=rows))
    names = [f"r{i}" for i in range(rows)], [f"c{j}" for j in range(columns)]
    cells = marks(Heatmap("t", values, *names, axes=("", "")).svg())
    there = [
        (i, j, value)
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value is not None
    ]
    assert [cell.tip for cell in cells] == [f"r{i}, c{j}: {value:.4g}" for i, j, value in there]
    most = max([1e-9, *(abs(value) for _, _, value in there)])
    for (_, _, value), cell in zip(there, cells, strict=True):
        assert cell.fill == (MINUS if value < 0 else PLUS)
        assert abs(value) / most / 1.51 - 1e-6 <= cell.opacity <= abs(value) / most + 1e-6
    placed = [(i, j, cell.box) for (i, j, _), cell in zip(there, cells, strict=True)]
    for k, side in ((0, 1), (1, 0)):  # rows by their tops, columns by their left sides
        starts = sorted({(place[k], round(place[2][side], 2)) for place in placed})
        assert len(starts) == len({entry for entry, _ in starts})
        assert [at for _, at in starts] == sorted({at for _, at in starts})


def test_the_pixels_of_a_png_have_the_colours_of_the_values() -> None:
    values = [[-1.0, 0.3], [0.0, 0.77]]
    picture = Heatmap("t", values, ["a", "b"], ["c", "d"], Scale(1.0), digits=None)
    for theme, paper in (("light", LIGHT.paper), ("dark", DARK.paper)):
        image = pixels(picture.png(theme, scale=3))  # type: ignore[arg-type]
        assert image.shape[:2] == tuple(3 * side for side in picture.size[::-1])
        flat = [value for row in values for value in row]
        for value, cell in zip(flat, marks(picture.svg()), strict=True):
            x, y = (round(3 * at) for at in cell.middle)
            wanted = blend(MINUS if value < 0 else PLUS, abs(value), paper)
            assert image[y, x, :3] == pytest.approx(wanted, abs=0.012)


def test_a_large_grid_is_an_image_with_the_same_colours() -> None:
    side = math.isqrt(MOST_DRAWN) + 1
    values = [[(i - j) / side for j in range(side)] for i in range(side)]
    picture = Heatmap("t", values, list("r" * side), list("c" * side), Scale(1.0), axes=("", ""))
    assert not marks(picture.svg())
    image = pixels(picture.png(scale=2))
    across, down = picture.cell
    for i, j in ((0, 0), (3, 40), (40, 3), (side - 1, side - 1)):
        x, y = picture._left + (j + 0.5) * across, picture._top + (i + 0.5) * down
        wanted = blend(MINUS if i < j else PLUS, abs(values[i][j]), LIGHT.paper)
        assert image[round(2 * y), round(2 * x), :3] == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("sign", [-1, 1])
def test_numbers_can_be_read_at_every_strength(theme: Any, sign: int) -> None:
    values = [sign * step / 50 for step in range(51)]
    picture = grid_of(*values, scale=Scale(1.0), digits=2)
    svg = picture.svg("light" if theme is LIGHT else "dark")
    small = [node for node in parsed(svg).iter(f"{SVG}text") if "10px" in node.attrib["style"]]
    found = [styles(node) for node in small]
    inks = [one.get("fill", "#000000") for one in found if one["text-anchor"] == "middle"]
    written = [value for value in values if round(value, 2)]
    assert len(inks) - 1 == len(written)  # and the middle of the legend
    for value, ink in zip(written, inks[:-1], strict=True):
        behind = blend(MINUS if sign < 0 else PLUS, abs(value), theme.paper)
        assert contrast(channels(ink), behind) >= 4.5, value


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_other_text_can_be_read(theme: Any) -> None:
    for ink in (theme.ink, theme.muted):
        assert contrast(channels(ink), channels(theme.paper)) >= 4.5


def test_a_missing_value_leaves_no_cell() -> None:
    assert [cell.tip[-1] for cell in marks(grid_of(1.0, None, 3.0).svg())] == ["1", "3"]


def test_numbers_are_written_unless_they_are_rounded_to_zero() -> None:
    drawn = texts(grid_of(0.004, -0.25, 1.0, scale=Scale(1.0), digits=2, rows=["r"]).svg())
    assert {"1.00", "\N{MINUS SIGN}0.25"} < set(drawn)
    assert "0.00" not in drawn
    assert not {"1.00", "\N{MINUS SIGN}0.25"} & set(texts(grid_of(1.0, -0.25, digits=None).svg()))


def test_texts_and_tips_of_ones_own_stand_in_for_numbers() -> None:
    picture = grid_of(1.0, 2.0, texts=[[" Paris", "Rome"]], tips=[["<one>", "two & three"]])
    assert {"·Paris", "Rome"} < set(texts(picture.svg()))
    assert [cell.tip for cell in marks(picture.svg())] == ["<one>", "two & three"]


def test_marked_cells_have_a_frame() -> None:
    plain_one, framed = (grid_of(1.0, 2.0, marked=m).svg("light") for m in ((), [(0, 1)]))
    assert framed.count(f"stroke: {LIGHT.ink}") == plain_one.count(f"stroke: {LIGHT.ink}") + 1


@pytest.mark.parametrize(
    "token",
    [
        "<script>alert(1)</script>",
        "$x$",
        "$",
        "日本語",
        "a&b",
        '" id="x" onload="y',
        "#010204",
        "\\frac",
        "\N{GRINNING FACE}",
    ],
)
def test_any_token_can_be_a_label(token: str) -> None:
    picture = grid_of(1.0, 2.0, columns=[token, "a long enough label"], title=token)
    assert token in texts(picture.svg())
    assert "<script" not in picture.html()
    assert ("".join(parsed(picture.svg())[0].itertext())) == token
    assert picture.png().startswith(b"\x89PNG")
    picture.to_plotly()


def test_spaces_and_line_breaks_are_visible() -> None:
    assert visible(" a\n") == "·a↵"
    assert plain("<&") == "&lt;&amp;"
    assert {"·of", "↵", "a b"} < set(
        texts(grid_of(1.0, 2.0, 3.0, columns=[" of", "\n", "a b"]).svg())
    )


def test_a_long_token_leaves_no_gap_below_the_grid() -> None:
    tokens = ["<|endoftext|>", "The", " cat", " sat", " on", " the", " mat"]
    across = Across.of(tokens, 38.0, 700.0)
    assert not across.turned
    assert across.names[1:] == tokens[1:]
    many = Across.of(["<|endoftext|>" * 3, *[" a"] * 60], 16.0, 700.0)
    assert many.height <= TURNED + 8


def test_a_long_title_is_broken_where_the_picture_ends() -> None:
    title = "Attention of every head to the token that followed the first copy of a word"
    wide, _ = grid_of(1.0, 2.0, title="").size
    picture = grid_of(1.0, 2.0, title=title)
    lines = [text for text in texts(picture.svg()) if text in title and " " in text]
    assert " ".join(lines) == title
    assert len(lines) > 1
    assert picture.size[0] < width(title) / 2 + wide


def test_the_unit_of_a_narrow_grid_does_not_make_it_wide() -> None:
    unit = "attention on the induction stripe"
    narrow = Heatmap("", [[1.0]], ["0"], ["0"], Scale(1.0, unit=unit))
    assert narrow.size[0] <= width(unit) + narrow._left + 10
    assert unit in texts(narrow.svg())


def test_a_scale_holds_the_largest_value_of_all_grids() -> None:
    assert Scale.around_zero([[1.0, None]], [[-3.0]]).limit == 3.0
    assert Scale.around_zero([[0.1]], least=1.0).limit == 1.0


@given(st.floats(1e-6, 1e9))
def test_the_end_of_a_scale_is_round_and_not_far(value: float) -> None:
    limit = Scale.fitting([[value]]).limit
    assert value * (1 - 1e-6) <= limit <= value * 1.51
    assert len(f"{limit:.6g}".replace(".", "").split("e")[0].strip("0")) <= 2


@pytest.mark.parametrize("wrong", [{"columns": ["a"]}, {"rows": ["a", "b"]}])
def test_labels_that_do_not_fit_are_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        grid_of(1.0, 2.0, **wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        grid_of(value)


def test_a_scale_without_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="limit above 0"):
        Scale(0.0)
