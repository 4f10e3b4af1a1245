"""Write the pages of docs/ that say what the code says: points.md, vocabulary.md and api/.

    python docs/generate            write the pages
    python docs/generate --check    exit with 1 if a page is not what would be written

They are generated because the tables of lensbridge/points/table.py, lensbridge/spec and
lensbridge/conformance/checks.py are where these facts live, and signatures and docstrings those of
the reference. docs/coverage.py writes the page of model types.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import api
import points
import vocabulary

DOCS = Path(__file__).parent.parent

PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "points.md": points.render,
    DOCS / "vocabulary.md": vocabulary.render,
    **api.pages(DOCS / "api"),
}


def is_current(path: Path, page: str) -> bool:
    """Whether a page is what would be written; prints the answer."""
    same = path.is_file() and path.read_text(encoding="utf-8") == page
    verdict = "up to date" if same else "out of date; run: make docs"
    print(f"{path.parent.name}/{path.name} is {verdict}")
    return same


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    pages = {path: render() for path, render in PAGES.items()}
    if arguments == ["--check"]:
        current = [is_current(path, page) for path, page in pages.items()]
        return 0 if all(current) else 1
    for path, page in pages.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(page, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
