"""The site before it is built: its navigation, its notebooks, and the checker of its links.

`make site` builds it and opens it in a browser (tests/documentation).
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
MOST_BYTES = 400_000
KINDS = {"stream", "display_data", "execute_result"}  # and not "error"


@pytest.fixture(scope="module")
def site() -> Iterator[dict[str, ModuleType]]:
    """The modules of docs/site that need nothing but Python; forgotten afterwards."""
    folder, names = str(DOCS / "site"), ("links", "notebooks", "pages")
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, folder)
    try:
        yield {name: import_module(name) for name in names}
    finally:
        sys.path.remove(folder)
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def test_the_navigation_has_every_page_once() -> None:
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    listed = re.findall(
        r'"([\w./-]+\.md)"', config[config.index("nav = ") : config.index("[project.extra]")]
    )
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    notebooks = {f"tutorials/{path.stem}.md" for path in NOTEBOOKS}
    assert len(listed) == len(set(listed))
    wanted = pages | notebooks | {"contributing.md", "changelog.md"}
    assert set(listed) == wanted, "put it into the navigation, in zensical.toml"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_was_run_and_shows_pictures(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    notebook = json.loads(text)
    assert notebook["metadata"]["language_info"] == {"name": "python"}  # no version
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(
        output["output_type"] in ("stream", "display_data", "execute_result") for output in outputs
    )
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) >= len(cells) / 3
    for cell in cells:
        compile("".join(cell["source"]), path.name, "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_to_files(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)", "".join(cell["source"])):
                assert "://" in target or (path.parent / target).exists(), target


def test_a_notebook_becomes_a_page_with_code_output_and_pictures(
    site: dict[str, ModuleType], tmp_path: Path
) -> None:
    png = "iVBORw0KGgo="
    outputs: list[dict[str, Any]] = [
        {"output_type": "stream", "name": "stdout", "text": ["4\n"]},
        {"output_type": "execute_result", "data": {"image/png": png, "text/plain": "Lines()"}},
    ]
    code = {"cell_type": "code", "id": "two", "source": ["print(2 + 2)"], "outputs": outputs}
    title = {"cell_type": "markdown", "id": "one", "source": ["# Sums\n", "\n", "Two and two."]}
    path = tmp_path / "sums.ipynb"
    path.write_text(json.dumps({"cells": [title, code]}), encoding="utf-8")
    place = tmp_path / "pages" / "sums.md"
    page = site["notebooks"].page(path, tmp_path / "ran", place)
    assert page.startswith("# Sums\n\nTwo and two.\n")
    assert "```python\nprint(2 + 2)\n```\n\n```{ .text .printed }\n4\n```" in page
    assert "![picture](sums-two-1.png)" in page
    assert (place.parent / "sums-two-1.png").read_bytes()[:4] == b"\x89PNG"

    outputs[1]["data"]["text/html"] = "<b>\n\n4</b>"
    (tmp_path / "ran").mkdir()
    (tmp_path / "ran" / "sums.ipynb").write_text(json.dumps({"cells": [title, code]}), "utf-8")
    assert "<b>\n4</b>" in site["notebooks"].page(path, tmp_path / "ran", place)
    code["source"] = ["print(5)"]
    path.write_text(json.dumps({"cells": [title, code]}), encoding="utf-8")
    del outputs[1]["data"]["text/html"]
    path.write_text(json.dumps({"cells": [title, code]}), encoding="utf-8")
    assert "<b>" not in site["notebooks"].page(path, tmp_path / "ran", place)  # of other code


def test_links_of_pages_lead_to_where_the_site_has_them(site: dict[str, ModuleType]) -> None:
    text = (
        "[a](../../README.md) [b](../tutorials/steering.ipynb) [c](https://x.org) [d](saes.md#top)"
    )
    moved = site["pages"]._links(text, DOCS / "how-to" / "steer.md", ROOT)
    assert (
        moved
        == "[a](../index.md) [b](../tutorials/steering.md) [c](https://x.org) [d](saes.md#top)"
    )


@pytest.mark.parametrize(
    ("markup", "fault"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="#here">', None),
        ('<a href="https://elsewhere.org/">', None),
        ('<a href="gone.html">', "no such page or anchor: gone.html"),
        ('<a href="other.html#gone">', "no such page or anchor: other.html#gone"),
        ('<img src="gone.png">', "no such file: gone.png"),
        (
            '<script src="https://cdn.org/x.js"></script>',
            "fetched from the network: https://cdn.org/x.js",
        ),
        ('<link rel="stylesheet" href="//fonts.org/x">', "fetched from the network: //fonts.org/x"),
    ],
)
def test_the_checker_finds_links_that_lead_nowhere(
    site: dict[str, ModuleType], tmp_path: Path, markup: str, fault: str | None
) -> None:
    (tmp_path / "index.html").write_text(f'<p id="here">{markup}</p>', encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="there"></p>', encoding="utf-8")
    expected = [f"index.html: {fault}"] if fault else []
    assert site["links"].broken(tmp_path) == expected
