"""Every kind of picture in JupyterLab and in an exported notebook. `make browser` runs this."""

import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser.gallery import CELLS, TEXT, executed
from browser.lab import TOKEN, Theme, lab
from browser.looks import Watched, watched

import lensbridge

pytestmark = pytest.mark.browser

pytest.importorskip("playwright.sync_api")
pytest.importorskip("nbclient")
pytest.importorskip("jupyterlab")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook, run."""
    path = tmp_path_factory.mktemp("notebook") / "gallery.ipynb"
    for cell, name in zip(executed(path).cells[1:], CELLS, strict=True):
        assert any("text/html" in one.get("data", {}) for one in cell.outputs), name
    return path


@dataclass(frozen=True)
class Shown:
    """A page with the notebook, and where its pictures are."""

    watched: Watched

    @property
    def page(self) -> Any:
        return self.watched.page

    def picture(self, name: str) -> Any:
        """The output of a cell."""
        place = list(CELLS).index(name) + 1
        return self.page.locator(".jp-CodeCell").nth(place).locator(".jp-OutputArea-output").last


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        found: int = one.getsockname()[1]
        return found


@pytest.fixture(scope="module", params=["Light", "Dark"])
def address(
    request: Any, notebook: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A JupyterLab that trusts the notebook."""
    yield from _lab(notebook, tmp_path_factory.mktemp("lab"), request.param, True)


@pytest.fixture(scope="module")
def suspicious(notebook: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab that does not."""
    yield from _lab(notebook, tmp_path_factory.mktemp("lab"), "Light", False)


def _lab(notebook: Path, folder: Path, theme: Theme, trusted: bool) -> Iterator[str]:
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    shutil.copy(notebook, notebooks)
    with lab(notebooks, folder, theme, trusted, free_port()) as found:
        yield f"{found}/lab/tree/{notebook.name}?token={TOKEN}"


@pytest.fixture
def shown(browser: Any, address: str) -> Iterator[Shown]:
    with watched(browser) as page:
        page.page.goto(address)
        page.page.wait_for_selector("[data-lb-graph][data-lb-ready]")
        page.page.wait_for_function("document.querySelectorAll('.lb-at-turn').length > 0")
        yield Shown(page)


def check_looks(page: Watched) -> None:
    """All pictures are there, and their texts can be read."""
    boxes = page.boxes()
    assert len(boxes) >= len(CELLS)
    assert all(one["width"] > 40 and one["height"] > 30 and one["least"] > 5 for one in boxes)
    assert all(one["beyond"] <= 1 for one in boxes)
    contrasts = page.contrasts()
    assert len(contrasts) > 100
    assert {text: c for text, c in contrasts.items() if c < 4.5} == {}


def test_every_picture_is_there_and_can_be_read(shown: Shown) -> None:
    check_looks(shown.watched)
    for name in CELLS:
        box = shown.picture(name).bounding_box()
        assert box["width"] > 100, name
        assert box["height"] > 30, name
    assert shown.page.locator(".lb-still >> visible=true").count() == 0


def weight(head: int, query: int, key: int) -> str:
    """A weight as the picture writes it, from a run here."""
    _, cache = lensbridge.load("demo").run_with_cache(TEXT)
    return f"{cache['pattern', 1][0, head, query, key].item():.4f}"


def test_pointing_at_a_cell_tells_tokens_and_weight(shown: Shown) -> None:
    view = shown.picture("attention")
    box = view.locator("image").bounding_box()
    view.locator("button").nth(2).click()
    side = box["width"] / 9
    shown.page.mouse.move(box["x"] + 1.5 * side, box["y"] + 3.5 * side)
    tip = view.locator(".lb-at-tip")
    assert tip.is_visible()
    assert tip.text_content() == f"head 2: from 3 ·Tower to 1 The: {weight(2, 3, 1)}"
    shown.page.mouse.move(box["x"] - 30, box["y"] - 5)
    assert not tip.is_visible()


def test_the_keyboard_reaches_heads_cells_and_tokens(shown: Shown) -> None:
    view, keys = shown.picture("attention"), shown.page.keyboard
    before = view.locator("image").get_attribute("href")
    view.locator("button").first.focus()
    keys.press("ArrowRight")
    assert view.locator("[aria-pressed=true]").first.get_attribute("aria-label") == "head 1"
    assert view.locator("image").get_attribute("href") != before
    keys.press("Tab")  # to the grid, at its lower left cell
    keys.press("ArrowUp")
    keys.press("ArrowRight")
    assert view.locator(".lb-at-tip").text_content() == (
        f"head 1: from 7 ·city to 1 The: {weight(1, 7, 1)}"
    )
    keys.press("Tab")  # to the text
    keys.press("End")
    keys.press("Enter")
    told = view.locator(".lb-at-told").text_content()
    assert told.startswith("From 8 ·of, most to: ")
    assert told.endswith("(held)")
    label = view.locator(".lb-at-token").nth(3).get_attribute("aria-label")
    assert label == f"3 ·Tower, weight {weight(1, 8, 3)}"


def test_a_token_colours_where_it_attends_and_who_attends_to_it(shown: Shown) -> None:
    view = shown.picture("attention")
    tokens = view.locator(".lb-at-token")

    def strengths() -> list[float]:
        found = tokens.evaluate_all("all => all.map(one => one.style.background)")
        return [float(re.findall(r"[\d.]+", one)[3]) if "rgba" in one else 1.0 for one in found]

    tokens.nth(4).hover()
    row = [float(weight(0, 4, key)) for key in range(9)]
    assert strengths() == pytest.approx(row, abs=0.004)
    view.locator(".lb-at-turn input").check()
    tokens.nth(1).hover()
    column = [float(weight(0, query, 1)) for query in range(9)]
    assert strengths() == pytest.approx(column, abs=0.004)


def test_queries_and_keys_of_cross_attention_are_two_texts(shown: Shown) -> None:
    view = shown.picture("cross")
    texts = view.locator(".lb-at-text")
    assert texts.all_text_contents() == ["Der Turm.", "The tower <b>."]
    texts.nth(1).locator(".lb-at-token").nth(1).hover()
    assert view.locator(".lb-at-told").text_content() == "To 1 ·tower, most from: 1 ·Turm 1.0000"


def test_a_node_of_a_circuit_shows_its_edges(shown: Shown) -> None:
    view, keys = shown.picture("circuit"), shown.page.keyboard
    view.get_by_label("a2.h2: follow").focus()
    keys.press("Enter")
    edges = view.locator(".lb-gr-told li").all_text_contents()
    assert edges
    assert all("a2.h2" in one for one in edges)
    assert view.locator(".lb-gr-near").count() == len(edges)
    assert view.locator(".lb-gr-dim.lb-gr-edge").count() == 40 - len(edges)
    keys.press("Escape")
    assert view.locator(".lb-gr-told li").count() == 0
    slider = view.get_by_label("How many of the largest edges")
    slider.focus()
    keys.press("Home")
    assert view.locator(".lb-gr-edge >> visible=true").count() == 1
    assert "the 1 largest of 40 edges" in view.text_content()
    path = view.locator(".lb-gr-hit >> visible=true").first
    x, y = path.evaluate(
        "p => { const m = p.getPointAtLength(p.getTotalLength() / 2).matrixTransform("
        "p.getScreenCTM()); return [m.x, m.y] }"
    )
    shown.page.mouse.move(x, y)
    assert re.fullmatch(r"\S+->\S+: [+\u2212][\d.]+", view.locator(".lb-gr-tip").text_content())


def test_two_pictures_do_not_disturb_each_other(shown: Shown) -> None:
    before = shown.picture("cross").inner_html()
    shown.picture("attention").locator("button").nth(1).click()
    assert shown.picture("cross").inner_html() == before


def test_a_notebook_that_is_not_trusted_shows_still_images(browser: Any, suspicious: str) -> None:
    with watched(browser) as page:
        page.page.goto(suspicious)
        page.page.wait_for_selector(".lb-still")
        shown = Shown(page)
        for name in CELLS:
            picture = shown.picture(name)
            if name in ("model", "cache"):
                assert "hook_embed" in picture.inner_text()
                continue
            image = picture.locator(".lb-still")
            size = image.evaluate("one => [one.complete, one.naturalWidth, one.clientWidth]")
            assert size[0], name
            assert min(size[1:]) > 100, name
            assert picture.inner_text().strip() == "", name


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_an_exported_notebook(
    browser: Any, notebook: Path, theme: str, width: int, tmp_path: Path
) -> None:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(theme=theme, require_js_url="", mathjax_url="", jquery_url="")
    path = tmp_path / "gallery.html"
    path.write_text(exporter.from_filename(str(notebook))[0], encoding="utf-8")
    with watched(browser, width) as page:
        page.page.goto(path.as_uri())
        page.page.wait_for_selector("[data-lb-graph][data-lb-ready]")
        page.page.wait_for_selector(".lb-at-turn")
        check_looks(page)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
        head = Shown(page).picture("attention").locator("button").nth(3)
        head.click()
        assert head.get_attribute("aria-pressed") == "true"


def test_without_a_script_the_main_content_is_there(browser: Any, tmp_path: Path) -> None:
    _, cache = lensbridge.load("demo").run_with_cache(TEXT)
    path = cache.plot_attention(1, head=[0, 2]).save(tmp_path / "x.html")
    with watched(browser, 700, java_script_enabled=False) as page:
        page.page.goto(path.as_uri())
        assert page.page.locator("svg image").bounding_box()["width"] > 150
        assert page.page.locator("button img").count() == 2
        assert "From 8 ·of, most to:" in page.page.text_content(".lb-at-told")
