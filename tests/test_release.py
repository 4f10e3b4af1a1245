"""What a release needs: the notes of a tag, one version everywhere, ranges that make reads."""

import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lensbridge

ROOT = Path(__file__).parent.parent
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "release" / "notes.py"))
NotReadyError: type[Exception] = SCRIPT["NotReadyError"]
notes: Callable[[str, str], str] = SCRIPT["notes"]

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2030-01-02

### Added

- A thing.

## [1.1.0] - not yet released

- Another.

## [1.0.0] - 2029-01-02
"""


def test_the_notes_of_a_release_are_its_section() -> None:
    assert notes("1.2.0", CHANGELOG) == "### Added\n\n- A thing.\n"


@pytest.mark.parametrize(
    ("version", "words"), [("1.3.0", "no section"), ("1.1.0", "Date the"), ("1.0.0", "is empty")]
)
def test_a_changelog_that_is_not_ready_is_refused(version: str, words: str) -> None:
    with pytest.raises(NotReadyError, match=words):
        notes(version, CHANGELOG)


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2", "v1.2.0-beta", "release"])
def test_a_tag_of_another_form_is_refused(tag: str) -> None:
    with pytest.raises(NotReadyError, match="A tag is written"):
        SCRIPT["main"](tag)


def test_every_file_has_the_version_of_the_package() -> None:
    SCRIPT["require_versions"](lensbridge.__version__)


@pytest.mark.parametrize("name", list(SCRIPT["VERSIONS"]))
def test_a_file_with_another_version_is_refused(name: str, tmp_path: Path) -> None:
    for one in SCRIPT["VERSIONS"]:
        (tmp_path / one).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / one, tmp_path / one)
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace(lensbridge.__version__, "9.9.9"), encoding="utf-8")
    with pytest.raises(NotReadyError, match=re.escape(f"but {name} has 9.9.9")):
        SCRIPT["require_versions"](lensbridge.__version__, tmp_path)


def test_the_changelog_begins_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    changes = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert set(changes) <= kinds


def asked_for(target: str) -> list[str]:
    """What `make TARGET` would give to pip, without running it."""
    dry = subprocess.run(
        ("make", "--dry-run", "--no-print-directory", target),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"'([\w-]+(?:\[\w+\])?[<>=]=[^']+)'", dry.stdout)


def ranges() -> dict[str, str]:
    """The lower end of everything that a user of any extra installs, from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\ndependencies = ")[1].split("\ntest = ")[0]
    return dict(re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', listed))


def test_the_oldest_versions_of_everything_are_tried() -> None:
    pins = dict(one.split("==") for one in asked_for("lowest"))
    assert {re.sub(r"\[.*", "", name): version for name, version in pins.items()} == ranges()
    assert {"torch", "transformers", "pandas"} <= set(pins)


def test_drift_takes_both_ends_and_keeps_the_pinned_torch() -> None:
    asked = asked_for("drift")
    assert not any(one.startswith("torch") for one in asked)
    for name, lowest in ranges().items():
        if name != "torch":
            assert f"{name}=={lowest}" in asked
            assert any(one.startswith(f"{name}>={lowest}") for one in asked)


def test_every_action_of_a_workflow_is_pinned_to_a_commit() -> None:
    used = [
        line
        for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        for line in re.findall(r"uses: .*", path.read_text(encoding="utf-8"))
    ]
    assert len(used) > 5
    assert [one for one in used if not re.fullmatch(r"uses: \S+@[0-9a-f]{40} # v[\d.]+", one)] == []
