"""Write the pages of docs/ that say what the code says: points.md and vocabulary.md.

    python docs/generate            write the pages
    python docs/generate --check    exit with 1 if a page is not what would be written

They are generated because the tables of lensbridge/points/table.py, lensbridge/spec.py and
lensbridge/conformance/checks.py are where these facts live. docs/coverage.py writes the page of
model types.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import points
import vocabulary

PAGES: dict[Path, Callable[[], str]] = {
    Path(__file__).parent.parent / "points.md": points.render,
    Path(__file__).parent.parent / "vocabulary.md": vocabulary.render,
}


def is_current(path: Path, page: str) -> bool:
    """Whether a page is what would be written, and say so."""
    same = path.is_file() and path.read_text(encoding="utf-8") == page
    print(f"{path.name} is {'up to date' if same else 'out of date; run: make docs'}")
    return same


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    pages = {path: render() for path, render in PAGES.items()}
    if arguments == ["--check"]:
        current = [is_current(path, page) for path, page in pages.items()]  # all are told
        return 0 if all(current) else 1
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
