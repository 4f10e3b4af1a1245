"""Generated pages are what the generator gives now; links and names of files lead somewhere."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]^]+\]\(([^)#\s]+)[^)]*\)")
FILE = re.compile(r"`((?:tests|lensbridge|adapters|docs)/[\w/-]+\.py)`")
SYMBOL_IN_FILE = re.compile(r"`([\w.]+)`(?: and `([\w.]+)`)? in\s+`(lensbridge/[\w/]+\.py)`")


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.fixture(scope="module")
def page(generator: dict[str, Any]) -> str:
    return generator["render"]()


def test_the_committed_page_of_points_is_what_the_generator_gives_now(page: str) -> None:
    committed = (ROOT / "docs" / "points.md").read_text(encoding="utf-8")
    assert committed == page, "docs/points.md is out of date; run: make docs"


def test_the_page_has_every_point_and_every_supported_class(page: str) -> None:
    from lensbridge_adapters import lensbridge_architectures

    from lensbridge import POINTS

    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    for point in POINTS:
        assert f"| `{point.name}`" in rows
    for architecture in lensbridge_architectures():
        assert all(f"`{name}`" in page for name in architecture.classes)


def test_a_page_that_differs_is_reported(
    generator: dict[str, Any], page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = generator["main"]
    inside = main.__globals__
    monkeypatch.setitem(inside, "PAGE", tmp_path / "points.md")
    monkeypatch.setitem(inside, "render", lambda: page)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "points.md").write_text(page.replace("residual", "stream"), encoding="utf-8")
    assert main(["--check"]) == 1


def test_an_adapter_without_a_column_stops_the_generator(
    generator: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    architectures = generator["architectures"]
    monkeypatch.delitem(generator["CONFIGS"], "llama")
    with pytest.raises(SystemExit, match="llama"):
        architectures()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_the_files_and_names_of_code_that_a_page_gives_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in FILE.findall(text):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"
    for *symbols, name in SYMBOL_IN_FILE.findall(text):
        code = (ROOT / name).read_text(encoding="utf-8")
        for symbol in filter(None, symbols):
            assert symbol.split(".")[0] in code, f"{page.name}: {name} has no {symbol}"


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    missing = {page for page in pages - {"index.md"} if page not in text}
    assert not missing, f"docs/index.md does not name {sorted(missing)}"
