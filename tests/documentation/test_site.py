"""The built site in a real browser, opened from its folder, without network: make site."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

pytest.importorskip("playwright.sync_api")

SITE = Path(__file__).parents[2] / "build" / "site" / "html"
EVERY = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PAGES = [page for page in EVERY if page != "404.html"]  # a server's, with paths from its root
TUTORIALS = [page for page in PAGES if page.startswith("tutorials/") and "index" not in page]
NARROW, WIDE = 500, 1400


@contextmanager
def reader(browser: Any, width: int = WIDE, theme: str = "light") -> Iterator[Any]:
    """A page of a browser that complains of errors and of anything that is fetched."""
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=theme)
    page, wrong = context.new_page(), []
    page.on("request", lambda one: wrong.append(one.url) if one.url.startswith("http") else None)
    page.on("requestfailed", lambda one: wrong.extend(missing(one)))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert not wrong


def missing(request: Any) -> list[str]:
    """What is not there; a request that the reader cut off by leaving the page is no fault."""
    return [] if request.failure == "net::ERR_ABORTED" else [f"missing: {request.url}"]


def visit(page: Any, name: str) -> None:
    page.goto((SITE / name).as_uri())


def results(page: Any, name: str = "", text: str = "") -> Any:
    """The links to pages that the search found: they say what to highlight there."""
    return page.locator(f"a[href*='{name}?h=']", has_text=text).locator("visible=true")


def test_the_site_was_built() -> None:
    assert len(PAGES) > 60, "run: make site"
    assert len(TUTORIALS) == 7


def test_no_page_fetches_anything_or_is_wider_than_a_phone(browser: Any) -> None:
    with reader(browser, NARROW) as page:
        for name in PAGES:
            visit(page, name)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= NARROW, f"{name} is {wide} pixels wide"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("induction", "Induction heads"),
        ("device_map", "70B on two GPUs"),
        ("run_with_cache", "LensModel"),
        ("HF_TOKEN", "Gated models"),
    ],
)
def test_the_search_finds_pages(browser: Any, words: str, found: str) -> None:
    with reader(browser) as page:
        visit(page, "index.html")
        page.keyboard.press("Control+k")
        page.keyboard.type(words)
        results(page, text=found).first.wait_for(timeout=10_000)


def test_a_result_of_the_search_leads_to_its_page(browser: Any) -> None:
    with reader(browser) as page:
        visit(page, "index.html")
        page.keyboard.press("Control+k")
        page.keyboard.type("suppresses the repeated name")
        results(page, "indirect-objects.html").first.click()
        page.wait_for_url("**/tutorials/indirect-objects.html*")


def luminance(page: Any, selector: str, what: str) -> float:
    colour = page.locator(selector).first.evaluate(f"one => getComputedStyle(one).{what}")
    numbers = colour[colour.index("(") + 1 : -1].replace(",", " ").split()[:3]
    return sum(float(number) for number in numbers) / 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_and_pictures_follow_the_theme(browser: Any, theme: str) -> None:
    with reader(browser, theme=theme) as page:
        visit(page, "tutorials/first-hour.html")
        paper, ink = luminance(page, "body", "backgroundColor"), luminance(page, "body", "color")
        assert (paper > 200) if theme == "light" else (paper < 40)
        assert (ink < 100) if theme == "light" else (ink > 140)
        text = luminance(page, picture_of(page), "color")
        assert abs(text - paper) > 120, "text of a picture cannot be read"


def picture_of(page: Any) -> str:
    """Where a tutorial's pictures are, which are images until `make tutorials` has run."""
    if not page.locator(".shown .lb").count():
        pytest.skip("the notebooks were not run here: make tutorials")
    return ".shown .lb"


def test_the_switch_changes_the_theme_of_pictures(browser: Any) -> None:
    with reader(browser, theme="dark") as page:
        visit(page, "tutorials/first-hour.html")
        picture = picture_of(page)
        dark = luminance(page, picture, "color")
        page.locator("label[for^='__palette']").locator("visible=true").first.click()
        page.wait_for_function("document.body.dataset.mdColorScheme == 'default'")
        assert luminance(page, picture, "color") < dark - 100


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_shows_what_its_cells_draw(browser: Any, name: str) -> None:
    with reader(browser) as page:
        visit(page, name)
        shown = page.locator(".shown")
        assert shown.count() >= 5
        for place in range(shown.count()):
            box = shown.nth(place).bounding_box()
            assert box is not None
            assert box["height"] > 30
        assert "Error" not in page.locator("article").inner_text()


@pytest.mark.parametrize("name", ["untouched", "the-tap", "threads"])
def test_a_drawing_is_in_the_page_and_has_a_name(browser: Any, name: str) -> None:
    with reader(browser, theme="dark") as page:
        visit(page, f"explanation/{name}.html")
        drawing = page.locator("figure.drawing")
        assert drawing.get_attribute("aria-label")
        assert luminance(page, "figure.drawing text", "fill") > 100  # light on dark
