"""The pages of the site: those of docs/, two from the top of the repository, and the notebooks.

They are copied into one folder, and their links are rewritten to where the pages are in it.
"""

import os
import re
import shutil
from pathlib import Path

import notebooks

MOVED = {
    "README.md": "index.md",  # the site begins with docs/index.md
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
DRAWING = re.compile(r"^!\[([^\]]*)\]\(([^)]+\.svg)\)$", re.MULTILINE)


def stage(root: Path, folder: Path) -> None:
    """Write all pages of a repository into a folder, afresh."""
    shutil.rmtree(folder, ignore_errors=True)
    for source, place in _places(root).items():
        if source.suffix == ".ipynb":
            text = notebooks.page(source, root / "build" / "site" / "tutorials", folder / place)
        else:
            text = source.read_text(encoding="utf-8")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(_adapted(text, source, root), encoding="utf-8")
    shutil.copytree(root / "docs" / "site" / "theme", folder, dirs_exist_ok=True)
    shutil.copytree(root / "docs" / "images", folder / "images")


def _places(root: Path) -> dict[Path, Path]:
    """Where each page goes."""
    docs = root / "docs"
    pages = [*docs.rglob("*.md"), *docs.glob("tutorials/*.ipynb")]
    found = {page: page.relative_to(docs).with_suffix(".md") for page in pages}
    moved = {root / name: Path(place) for name, place in MOVED.items() if name != "README.md"}
    return found | moved


def _adapted(text: str, source: Path, root: Path) -> str:
    """A page with drawings inside it and links that lead to pages of the site."""
    parts = FENCED.split(text)
    parts[::2] = [_links(_drawings(part, source), source, root) for part in parts[::2]]
    return "".join(parts)


def _links(text: str, source: Path, root: Path) -> str:
    here = _place(source, root).parent

    def moved(found: re.Match[str]) -> str:
        target = found[2]
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = Path(os.path.normpath(source.parent / target))
        to = os.path.relpath(_place(path, root), here)
        return f"{found[1]}{to}{found[3]}"

    return LINK.sub(moved, text)


def _place(path: Path, root: Path) -> Path:
    """Where the site has a file of the repository."""
    name = str(path.relative_to(root))
    if name in MOVED:
        return Path(MOVED[name])
    place = path.relative_to(root / "docs")
    return place.with_suffix(".md") if place.suffix == ".ipynb" else place


def _drawings(text: str, source: Path) -> str:
    """Drawings inside the page, where they take the colours of its theme."""

    def inside(found: re.Match[str]) -> str:
        svg = (source.parent / found[2]).read_text(encoding="utf-8")
        svg = re.sub(r"<style>.*?</style>\s*", "", svg, flags=re.DOTALL)  # for readers elsewhere
        svg = re.sub(r"\n\s*", "\n", svg.strip())
        return f'<figure class="drawing" role="img" aria-label="{found[1]}">\n{svg}\n</figure>'

    return DRAWING.sub(inside, text)
