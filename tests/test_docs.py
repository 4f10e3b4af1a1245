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
    return runpy.run_path(str(ROOT / "docs" / "generate"))


@pytest.fixture(scope="module")
def pages(generator: dict[str, Any]) -> dict[str, str]:
    docs = ROOT / "docs"
    found = {str(path.relative_to(docs)): render for path, render in generator["PAGES"].items()}
    return {name: found[name]() for name in ("points.md", "vocabulary.md")}


@pytest.mark.parametrize("name", ["points.md", "vocabulary.md"])
def test_the_committed_page_is_what_the_generator_gives_now(
    pages: dict[str, str], name: str
) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == pages[name], f"docs/{name} is out of date; run: make docs"


def test_the_page_of_points_has_every_point(pages: dict[str, str]) -> None:
    from lensbridge import POINTS

    rows = [line.split(" | ")[0] for line in pages["points.md"].splitlines() if line[:2] == "| "]
    for point in POINTS:
        assert f"| `{point.name}`" in rows


def test_every_spelling_on_the_page_means_something(pages: dict[str, str]) -> None:
    empty = re.findall(r"^\| (`[^`|]+`) \|  \|$", pages["points.md"], re.MULTILINE)
    assert not empty


def test_the_page_of_words_has_every_word_of_the_vocabulary(pages: dict[str, str]) -> None:
    from dataclasses import fields

    from lensbridge.spec import MLP, Architecture, Attention, Stack

    for one in (MLP, Architecture, Attention, Stack):
        for word in fields(one):
            assert f"| `{word.name}` | " in pages["vocabulary.md"], word.name
    for line in pages["vocabulary.md"].splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        assert not line.startswith("| `") or len(cells) in (5, 7), line


def test_a_page_that_differs_is_reported(
    generator: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = generator["main"]
    one, other = tmp_path / "one.md", tmp_path / "other.md"
    rendered = {one: lambda: "residual", other: lambda: "words"}
    monkeypatch.setitem(main.__globals__, "PAGES", rendered)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    other.write_text("word", encoding="utf-8")
    assert main(["--check"]) == 1


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
    reference = {page for page in pages if page.startswith("api/")} - {"api/index.md"}
    missing = {page for page in pages - reference - {"index.md"} if page not in text}
    assert not missing, f"docs/index.md does not name {sorted(missing)}"
