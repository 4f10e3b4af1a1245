"""Build the documentation site, and run the tutorials.

python docs/site build                       make build/site/html, and check its links
python docs/site tutorials [NAME ...]        run the notebooks of docs/tutorials; exit with 1
                                             if one prints something else than it says
python docs/site tutorials --write [NAME ..] and keep what they print and draw
"""

import subprocess
import sys
from pathlib import Path

import links
import pages

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "site"


def build() -> int:
    """Stage the pages, build them, and check every link of the result."""
    pages.stage(ROOT, BUILD / "pages")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if failed := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return failed
    broken = links.broken(BUILD / "html")
    print(*broken, f"{len(broken)} broken links", sep="\n")
    return 1 if broken else 0


def tutorials(names: list[str], write: bool) -> int:
    """Run notebooks. What they print is compared with what they said, or written."""
    folder = ROOT / "docs" / "tutorials"
    from running import run  # it needs Jupyter

    chosen = [folder / f"{name}.ipynb" for name in names] or sorted(folder.glob("*.ipynb"))
    changed = [path.name for path in chosen if run(path, BUILD / "tutorials", write)]
    if write or not changed:
        return 0
    for name in changed:
        print(f"{name} prints something else than it says; to keep it: make tutorials WRITE=1")
    return 1


def main(arguments: list[str]) -> int:
    """Do what the command line asks for."""
    match arguments:
        case ["build"]:
            return build()
        case ["tutorials", "--write", *names]:
            return tutorials(names, write=True)
        case ["tutorials", *names]:
            return tutorials(names, write=False)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
