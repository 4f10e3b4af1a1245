"""docs/api/ is what the generator gives now, leaves out nothing public, and its links resolve."""

import re
import runpy
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lensbridge
from lensbridge import ActivationCache

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "api"
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.fixture(scope="module")
def api() -> Iterator[ModuleType]:
    """docs/generate/api.py; what it imports under short names is forgotten afterwards."""
    folder, before = str(ROOT / "docs" / "generate"), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield import_module("api")
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                del sys.modules[name]


@pytest.fixture(scope="module")
def pages(api: ModuleType) -> dict[str, str]:
    return {path.name: render() for path, render in api.pages(FOLDER).items()}


def test_the_committed_pages_are_what_the_generator_gives_now(pages: dict[str, str]) -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(pages)
    stale = [
        name for name, page in pages.items() if (FOLDER / name).read_text(encoding="utf-8") != page
    ]
    assert not stale, f"docs/api: {stale} are out of date; run: make docs"


def test_make_docs_writes_the_reference(api: ModuleType) -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "generate"))
    assert set(api.pages(FOLDER)) <= set(generator["PAGES"])


def test_every_public_name_of_every_package_has_its_entry(
    api: ModuleType, pages: dict[str, str]
) -> None:
    for package in api.PACKAGES:
        page = pages[package.page]
        for name in import_module(package.module).__all__:
            entry = f"| `{name}` |" if package.module in api.IN_BRIEF else f"## `{name}`\n"
            assert entry in page, f"{package.page} has no {name}"


def test_every_public_package_has_a_page(api: ModuleType) -> None:
    described = {package.module for package in api.PACKAGES}
    for room in lensbridge._ROOMS:
        module = import_module(f"lensbridge.{room}")
        assert module.__name__ in described or not hasattr(module, "__all__")


def test_every_public_name_of_a_model_is_in_one_group(
    api: ModuleType, pages: dict[str, str]
) -> None:
    model = lensbridge.load("demo")
    public = {name for name in dir(model) if not name.startswith("_")}
    grouped = [name for group in api.GROUPS for name in group.names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == public, "put it into a group of docs/generate/model_groups.py"
    for name in grouped:
        assert f"### `{name}`\n" in pages["model.md"] or f"| `{name}` |" in pages["model.md"]


def test_every_group_of_the_model_has_a_guide(api: ModuleType) -> None:
    assert all(group.guides for group in api.GROUPS)
    assert all(package.guides for package in api.PACKAGES)


def test_every_public_name_of_a_cache_is_on_its_page(pages: dict[str, str]) -> None:
    from collections.abc import Mapping

    inherited = set(dir(Mapping))  # what a dictionary does
    for name in set(dir(ActivationCache)) - inherited:
        if not name.startswith("_"):
            text = pages["cache.md"]
            assert f"## `{name}`\n" in text or f"| `{name}` |" in text, name


def test_every_first_line_says_something(api: ModuleType) -> None:
    entries = [*api.shown(), *(entry for page in api.entries().values() for entry in page)]
    assert len(entries) > 400
    assert not [entry.name for entry in entries if not entry.summary.strip()]
    types = api.type_rows()
    assert not [name for name, (_, meaning) in types.items() if not meaning.strip()]


def test_signatures_are_short_and_as_written(pages: dict[str, str]) -> None:
    model = pages["model.md"]
    assert '    return_type: ReturnType = "logits",\n' in model  # not its union
    assert "add_perma_hook(name: NamesFilter, hook: HookFunction" in model
    assert "typing." not in model
    assert "@overload" not in model  # of overloads, the implementation
    assert model.count("### `run_with_cache`\n") == 1
    assert "-> tuple[Result, ActivationCache | dict[str, Tensor]]" in model
    for text in pages.values():
        for block in re.findall(r"```py\n(.*?)```", text, re.DOTALL):
            assert all(len(line) <= 110 for line in block.splitlines()), block


def anchors(page: str, slug: Any) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}


def test_every_link_leads_to_a_page_and_to_a_heading_on_it(
    api: ModuleType, pages: dict[str, str]
) -> None:
    count = 0
    for name, page in pages.items():
        prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        for target, anchor in LINK.findall(prose):
            path = (FOLDER / (target or name)).resolve()
            assert path.is_file(), f"{name} links to {target}"
            if anchor:
                there = pages[path.name] if path.parent == FOLDER else path.read_text()
                assert anchor in anchors(there, api.slug), f"{name} links to {target}#{anchor}"
            count += 1
    assert count > 200


def test_the_index_links_to_every_page(pages: dict[str, str]) -> None:
    for name in set(pages) - {"index.md"}:
        assert f"]({name}" in pages["index.md"]
    assert "api/index.md" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_a_name_without_a_group_is_noticed(api: ModuleType) -> None:
    assert api.ungrouped(["forward", "no_such_method"]) == ("no_such_method",)
