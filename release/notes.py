"""Print the notes of a release, and fail if it is not ready: `python release/notes.py v1.2.3`.

The tag, `lensbridge.__version__` and `CITATION.cff` must have the same version, and the changelog a
section of that version with a date. It runs without lensbridge's dependencies.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = {
    "lensbridge/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}
DATE = r"\d{4}-\d{2}-\d{2}"


class NotReadyError(Exception):
    """What has to be changed before the release."""


def require_versions(version: str, root: Path = ROOT) -> None:
    """Require that every file has this version.

    Raises:
        NotReadyError: one has another; the message names it.
    """
    for name, pattern in VERSIONS.items():
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            has = "no version" if found is None else found[1]
            raise NotReadyError(f"The tag says {version}, but {name} has {has}.")


def notes(version: str, changelog: str) -> str:
    """The section of a version in the changelog.

    Raises:
        NotReadyError: there is no such section, it has no date, or nothing is in it.
    """
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    section = next((one for one in sections if one.startswith(f"[{version}]")), None)
    if section is None:
        raise NotReadyError(f"CHANGELOG.md has no section '## [{version}]'. Rename [Unreleased].")
    title, _, body = section.partition("\n")
    if not re.fullmatch(rf"\[{re.escape(version)}\] - {DATE}", title):
        raise NotReadyError(f"Date the section of CHANGELOG.md: '## [{version}] - YYYY-MM-DD'.")
    if not body.strip():
        raise NotReadyError(f"The section [{version}] of CHANGELOG.md is empty.")
    return body.strip() + "\n"


def main(tag: str) -> None:
    """Print the notes of the release with this tag."""
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        raise NotReadyError(f"A tag is written v1.2.3 or v1.2.3rc1, not {tag!r}.")
    require_versions(version)
    print(notes(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")), end="")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NotReadyError as error:
        sys.exit(f"Not ready for a release: {error}")
