"""Lines, bars, histograms, coloured text and panels: the marks are where the numbers say."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import MINUS, PLUS, SVG, blend, channels, contrast, marks, parsed, pixels, texts

from lensbridge.viz import Bars, ColouredText, Heatmap, Histogram, Lines, Panels
from lensbridge.viz.frame import ticks
from lensbridge.viz.heading import wrapped
from lensbridge.viz.labels import width
from lensbridge.viz.theme import DARK, LIGHT

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def linear(values: Any, places: Any) -> None:
    """Places on a chart are a linear function of the values."""
    values, places = np.asarray(values), np.asarray(places)
    slope, start = np.polyfit(values, places, 1)
    assert places == pytest.approx(slope * values + start, abs=0.05)


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_bars_are_as_long_as_their_values(values: list[float]) -> None:
    bars = marks(Bars("t", values, [f"b{i}" for i in range(len(values))], unit="logits").svg())
    most = max(map(abs, values))
    lengths = [box[2] - box[0] for box in (bar.box for bar in bars)]
    longest = max(lengths)
    for i, (value, bar, length) in enumerate(zip(values, bars, lengths, strict=True)):
        assert bar.tip == f"b{i}: {value:.4g} logits"
        assert bar.fill == (MINUS if value < 0 else PLUS)
        wanted = longest * abs(value) / most if most else 0.5
        assert length == pytest.approx(max(wanted, 0.5), abs=0.6)


def test_bars_begin_at_zero_and_go_to_the_side_of_their_sign() -> None:
    left, right = marks(Bars("", [-3.0, 2.0], ["a", "b"]).svg())
    assert left.box[2] == pytest.approx(right.box[0])
    assert left.box[0] < left.box[2] < right.box[2]


def test_errors_of_bars_reach_as_far_as_they_say() -> None:
    svg = Bars("", [4.0, 2.0], ["a", "b"], errors=[1.0, 0.5]).svg("light")
    bars = [mark.box for mark in marks(svg)]
    each = (bars[0][2] - bars[0][0]) / 4
    spans = re.findall(
        r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n" style="[^"]*stroke-width: 1.5', svg
    )
    assert len(spans) == 2
    for (start, end), error, bar in zip(spans, (1.0, 0.5), bars, strict=True):
        assert float(end) - float(start) == pytest.approx(2 * error * each, rel=1e-3)
        assert (float(end) + float(start)) / 2 == pytest.approx(bar[2], abs=0.01)


def test_numbers_and_remarks_of_bars_are_written() -> None:
    drawn = texts(Bars("Title", [1.5, -2.0], [" a", "b"], "nats", remarks=["first", ""]).svg())
    assert {"Title", "1.50 first", "\N{MINUS SIGN}2.00", "·a", "b", "nats"} <= set(drawn)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"values": [1.0], "labels": []}, "0 entries for 1 bars"),
        ({"values": [], "labels": []}, "no bar"),
        ({"values": [float("nan")], "labels": ["a"]}, "not finite"),
        ({"values": [1.0], "labels": ["a"], "errors": [1.0, 2.0]}, "2 entries for 1 bars"),
    ],
)
def test_bars_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bars("t", **wrong)


@given(st.lists(FINITE, min_size=2, max_size=9).filter(lambda v: max(v) - min(v) > 1e-3))
def test_dots_of_a_line_are_at_its_values(values: list[float]) -> None:
    dots = marks(Lines("t", {"loss": values}, [f"x{i}" for i in range(len(values))]).svg())
    linear(range(len(values)), [dot.middle[0] for dot in dots])
    linear(values, [dot.middle[1] for dot in dots])
    assert [dot.tip for dot in dots] == [f"loss x{i}: {v:.4g}" for i, v in enumerate(values)]
    assert dots[values.index(max(values))].middle[1] < dots[values.index(min(values))].middle[1]


def test_lines_have_colours_of_their_own_and_their_names() -> None:
    picture = Lines("t", {"a": [1.0, 2.0], "b": [2.0, 1.0]}, ["0", "1"], axes=("layer", "acc"))
    fills = [dot.fill for dot in marks(picture.svg())]
    assert fills == [picture.colours["a"]] * 2 + [picture.colours["b"]] * 2
    assert len(set(fills)) == 2
    assert {"a", "b", "layer", "acc", "t"} <= set(texts(picture.svg()))


def test_many_names_of_lines_stay_inside_the_picture() -> None:
    series = {f"a line with a long name {i}": [float(i), 1.0] for i in range(8)}
    picture = Lines("", series, ["0", "1"])
    for node in parsed(picture.svg()).iter(f"{SVG}text"):
        name = node.text or ""
        if name in series:
            assert float(node.attrib["x"]) + width(name) <= picture.size[0]
    assert picture.frame.top < picture.frame.bottom


def test_gaps_are_left_where_values_are_missing() -> None:
    dots = marks(Lines("", {"a": [1.0, None, float("nan"), 4.0]}, list("wxyz")).svg())
    assert [dot.tip for dot in dots] == ["a w: 1", "a z: 4"]


def test_the_name_of_a_level_keeps_away_from_the_line() -> None:
    values = [5.0] * 10 + [0.0] * 10  # the level runs along the first half
    picture = Lines("", {"a": values}, list(map(str, range(20))), reference=(5.0, "chance"))
    (node,) = (n for n in parsed(picture.svg()).iter(f"{SVG}text") if n.text == "chance")
    x, y = float(node.attrib["x"]), float(node.attrib["y"])
    near = [d for d in marks(picture.svg()) if x - width("chance") < d.middle[0] < x]
    assert near
    assert all(abs(dot.middle[1] - y) > 10 for dot in near)


def test_a_band_is_as_wide_as_its_errors() -> None:
    series, errors = {"a": [0.0, 4.0, 2.0]}, {"a": [1.0, 0.5, 0.0]}
    picture = Lines("", series, list("xyz"), errors=errors)
    (band,) = re.findall(r'd="([^"]*)"[^>]*opacity: 0.18', picture.svg())
    dots = [mark.middle for mark in marks(picture.svg())]
    each = (dots[0][1] - dots[1][1]) / 4
    numbers = [float(n) for n in re.findall(r"[\d.]+", band)]
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    for (x, y), error in zip(dots, errors["a"], strict=True):
        ends = [b for a, b in corners if abs(a - x) < 0.01]
        assert min(ends) == pytest.approx(y - error * each, abs=0.01)
        assert max(ends) == pytest.approx(y + error * each, abs=0.01)


@pytest.mark.parametrize(
    ("series", "message"),
    [({"a": [1.0]}, "1 values for 2 labels"), ({"a": [None, None]}, "no finite value")],
)
def test_lines_that_do_not_fit_are_refused(series: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lines("t", series, ["0", "1"])


@given(st.lists(FINITE, min_size=1, max_size=60), st.one_of(st.none(), st.integers(1, 12)))
def test_the_counts_of_a_histogram_are_those_of_the_values(
    values: list[float], bins: int | None
) -> None:
    picture = Histogram("t", [*values, float("nan")], bins=bins)
    counts, edges = picture.counted
    assert sum(counts) == len(values)
    assert (edges[0], edges[-1]) == (pytest.approx(min(values)), pytest.approx(max(values))) or (
        min(values) == max(values)
    )
    inside = [sum(low <= v < high for v in values) for low, high in pairwise(edges)]
    inside[-1] += sum(v == edges[-1] for v in values)
    assert counts == inside
    heights = [mark.box[3] - mark.box[1] for mark in marks(picture.svg())]
    tallest = max(range(len(counts)), key=counts.__getitem__)
    for count, height in zip(counts, heights, strict=True):
        assert height == pytest.approx(heights[tallest] * count / counts[tallest], abs=0.05)


def test_a_histogram_is_labelled_at_round_numbers_in_their_places() -> None:
    picture = Histogram("t", np.random.default_rng(0).normal(size=500).tolist(), bins=7)
    nodes = {n.text: n for n in parsed(picture.svg()).iter(f"{SVG}text")}
    zero, two = (float(nodes[name].attrib["x"]) for name in ("0", "2"))
    bars, (_, edges) = [mark.box for mark in marks(picture.svg())], picture.counted
    each = (bars[-1][0] - bars[0][0]) / (edges[-2] - edges[0])
    assert two - zero == pytest.approx(2 * each, abs=0.5)
    assert zero == pytest.approx(bars[0][0] - edges[0] * each, abs=0.5)


@given(FINITE, st.floats(1e-3, 1e6))
def test_ticks_hold_the_range_and_are_few(low: float, size: float) -> None:
    found = ticks(low, low + size)
    assert found[0] <= low * (1 - 1e-9 if low > 0 else 1 + 1e-9) + 1e-9 * size
    assert found[-1] >= (low + size) - 1e-6 * (abs(low) + size)
    assert 2 <= len(found) <= 9


def test_tokens_are_coloured_by_their_values() -> None:
    picture = ColouredText("Loss", ["<b>", " the", "\n"], [-1.0, 0.5, 0.0], unit="nats")
    html = picture.fragment()
    assert "&lt;b&gt;" in html
    assert re.findall(r"in srgb,(#\w+) (\d+)%", html) == [(MINUS, "100"), (PLUS, "50"), (PLUS, "0")]
    assert 'title="0 &lt;b&gt;: -1 nats"' in html
    assert [m.opacity for m in marks(picture.svg())] == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="values for"):
        ColouredText("t", ["a"], [1.0, 2.0])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("colour", [PLUS, MINUS])
def test_coloured_tokens_can_be_read(theme: Any, colour: str) -> None:
    sign = 1 if colour == PLUS else -1
    tokens = [ColouredText("", ["x"] * 51, [sign * i / 50 for i in range(51)])]
    pairs = re.findall(r"(\d+)%,transparent\);color:(\S+?)\"", tokens[0].fragment())
    assert len(pairs) == 51
    for share, ink in pairs:
        written = "#ffffff" if ink == "#fff" else theme.cell_ink
        behind = blend(colour, int(share) / 100, theme.paper)
        assert contrast(channels(written), behind) >= 4.5


def test_panels_hold_every_picture() -> None:
    pictures = [Heatmap(f"grid {i}", [[float(i)]], ["r"], ["c"]) for i in (1, 2, 3)]
    panels = Panels("Together", pictures, columns=2)
    tips = [f"row r, column c: {i}" for i in (1, 2, 3)]
    assert [mark.tip for mark in marks(panels.svg())] == tips
    boxes = [mark.box for mark in marks(panels.svg())]
    assert boxes[0][1] == boxes[1][1] < boxes[2][1]
    assert boxes[0][0] == boxes[2][0] < boxes[1][0]
    assert panels.fragment().count("<svg") == 3
    assert panels.fragment().count("<style>") == 1
    assert pixels(panels.png()).shape[:2] == tuple(2 * round(side) for side in panels.size[::-1])
    with pytest.raises(ValueError, match="no picture"):
        Panels("t", [])


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=12), st.floats(20, 200))
@example(["one", "two", "three"], 60.0)
def test_a_broken_text_keeps_its_words_in_order(words: list[str], room: float) -> None:
    lines = wrapped(" ".join(words), room)
    assert " ".join(lines).split() == words
    assert all(width(line) <= room or " " not in line for line in lines)
    for line, after in pairwise(lines):  # no line ends before it has to
        assert width(f"{line} {after.split()[0]}") > room
