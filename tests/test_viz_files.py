"""Pictures in pages and files: nothing is fetched, two of them do not disturb each other."""

import builtins
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pictures import ids, pixels

from lensbridge.errors import InputError, LensbridgeError
from lensbridge.viz import (
    Bars,
    ColouredText,
    Drawn,
    Heatmap,
    Histogram,
    Lines,
    Panels,
    Picture,
)
from lensbridge.viz.theme import DARK, LIGHT

GRID = Heatmap("Grid", [[1.0, -2.0], [None, 0.5]], ["a", "b"], ["c", "d"], marked=[(0, 0)])
LINES = Lines("Lines", {"a": [1.0, 2.0], "b": [0.0, None]}, ["0", "1"], errors={"a": [0.1, 0.2]})
BARS = Bars("Bars", [1.0, -2.0], ["a", "b"], unit="logits")
COUNTS = Histogram("Counts", [1.0, 2.0, 2.0, 5.0], bins=4)
TEXT = ColouredText("Text", ["a", " b"], [1.0, -1.0])
ALL = [GRID, LINES, BARS, COUNTS, TEXT, Panels("All", [GRID, BARS])]
each_picture = pytest.mark.parametrize("picture", ALL, ids=lambda one: type(one).__name__)


@each_picture
def test_nothing_is_fetched(picture: Picture) -> None:
    for text in (picture.html(), picture.fragment(), picture.svg()):
        without = text.replace("http://www.w3.org/2000/svg", "").replace(
            "http://www.w3.org/1999/xlink", ""
        )
        assert "http" not in without
        assert not re.search(r"<script|<link|<img|@import|url\((?!#)", without)
        assert all(
            link.startswith(("data:", "#")) for link in re.findall(r'(?:href|src)="([^"]*)"', text)
        )


@each_picture
def test_two_fragments_share_no_id(picture: Picture) -> None:
    first, second = ids(picture.fragment()), ids(picture.fragment())
    assert len(first) == len(set(first))
    assert not set(first) & set(second)


@each_picture
def test_what_is_referred_to_is_there(picture: Picture) -> None:
    svg = picture.svg()
    assert set(re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", svg)) <= set(ids(svg))


@each_picture
def test_the_page_is_well_formed_and_says_its_title(picture: Picture) -> None:
    root = ElementTree.fromstring(picture.html().partition("\n")[2])
    assert root.findtext("head/title") == picture.title
    shown = ElementTree.fromstring(picture._repr_html_())
    assert shown.find("img").attrib["alt"] == picture.title  # type: ignore[union-attr]
    assert "lb" in [one.attrib.get("class") for one in shown.iter("div")]


@each_picture
def test_it_is_saved_as_what_its_ending_says(picture: Picture, tmp_path: Path) -> None:
    starts = {".html": b"<!DOCTYPE html>", ".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        path = picture.save(tmp_path / f"x{suffix.upper()}")
        assert path.read_bytes().startswith(start)
    ElementTree.parse(tmp_path / "x.SVG")
    assert "var(" not in (tmp_path / "x.SVG").read_text(encoding="utf-8")
    assert pixels((tmp_path / "x.PNG").read_bytes()).shape[1] == 2 * round(picture.size[0])


def test_a_theme_colours_a_file(tmp_path: Path) -> None:
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        image = pixels(GRID.save(tmp_path / "x.png", theme=theme).read_bytes())  # type: ignore[arg-type]
        paper = tuple(round(255 * channel) for channel in image[2, -2, :3])
        assert "#{:02x}{:02x}{:02x}".format(*paper) == colours.paper
        assert colours.ink in GRID.svg(theme)  # type: ignore[arg-type]
    page = GRID.html("dark")
    assert '<html lang="en" theme="dark">' in page


def test_another_ending_or_theme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"saved as \.html, \.svg, \.png, \.pdf; 'x\.jpg'"):
        GRID.save(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="A theme is 'auto', 'light', 'dark', not 'blue'"):
        GRID.svg("blue")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_matplotlib_figure_is_given_and_pyplot_left_alone() -> None:
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    figure = GRID.to_matplotlib()
    assert tuple(figure.get_size_inches() * 72) == pytest.approx(GRID.size)
    assert not pyplot.get_fignums()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("picture", [GRID, LINES, BARS, COUNTS], ids=lambda p: type(p).__name__)
def test_plotly_has_the_values(picture: Any) -> None:
    pytest.importorskip("plotly")
    figure = picture.to_plotly()
    assert figure.layout.title.text == picture.title
    wanted: Any = {
        "Heatmap": lambda: ([list(row) for row in figure.data[0].z], [[1.0, -2.0], [None, 0.5]]),
        "Lines": lambda: ({t.name: list(t.y) for t in figure.data}, dict(LINES.series)),
        "Bars": lambda: (list(figure.data[0].x), [1.0, -2.0]),
        "Histogram": lambda: (list(figure.data[0].y), COUNTS.counted[0]),
    }
    found, given = wanted[type(picture).__name__]()
    assert found == given


def test_tokens_are_the_labels_of_plotly_even_if_they_repeat() -> None:
    pytest.importorskip("plotly")
    figure = Heatmap("", [[1.0, 2.0]], ["0"], [" the", " the"]).to_plotly()
    assert list(figure.layout.xaxis.ticktext) == ["·the", "·the"]
    assert list(figure.data[0].x) == [0, 1]


def test_without_plotly_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("plotly"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LensbridgeError, match=r"pip install 'lensbridge\[plotly\]'"):
        GRID.to_plotly()


def test_a_picture_that_plotly_lacks_says_so() -> None:
    pytest.importorskip("plotly")
    with pytest.raises(LensbridgeError, match="ColouredText has no form in plotly"):
        TEXT.to_plotly()


class Measured(Drawn):
    """A result with two pictures, of which one has to be chosen."""

    def plot(self, which: str | None = None) -> Picture:
        if which is None:
            raise InputError("Say which: <one> or two.")
        return GRID


def test_a_result_draws_itself(tmp_path: Path) -> None:
    assert Measured().save(tmp_path / "x.png", which="one").is_file()
    html = Measured()._repr_html_()
    assert "Say which: &lt;one&gt; or two." in html
    assert "Measured object" in html
