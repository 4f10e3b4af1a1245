"""Adapters of other packages: found on the package index, checked, and listed in docs/adapters.md.

A package is listed if its normalized name begins with `lensbridge-` and it has an entry point in
the group `lensbridge`; nobody has to ask for it.

    python docs/adapters.py                 write the page from docs/adapters.json
    python docs/adapters.py --check         fail if the page is not what would be written
    python docs/adapters.py --run           find and check every package, and write both
    python docs/adapters.py --run NAME...   check these (names or files of packages) instead

Each package is installed with the newest transformers in an environment of its own, and
`lensbridge adapters PLUGIN --check` is run there. The status is 1 if a package does not conform.
"""

import argparse
import html
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).parent.parent
PREFIX = "lensbridge-"
INDEX = "https://pypi.org/simple/"
LONGEST = 1800
"""Seconds that one command for a package may take."""

PAGE, RECORDS = ROOT / "docs" / "adapters.md", ROOT / "docs" / "adapters.json"

_PLUGINS = """
from importlib.metadata import entry_points
for one in entry_points(group="lensbridge"):
    if one.dist.name != "lensbridge":
        print(one.dist.name, one.dist.version, one.name)
"""
"""A program that prints a line for each plugin: its package, the version of that, its name."""

_HEAD = """# Adapters of other packages

Each package brings descriptions of architectures: install it, and `lensbridge.load` reads the
models that it describes. A package is listed here if its name on the package index begins with
`lensbridge-` (or `lensbridge_`) and it has an
[entry point](how-to/add-an-architecture.md#4-ship-it). A job that runs every night checks each of
them with the newest transformers, and renews this page.

"""


def names(index: str) -> list[str]:
    """The packages of an index whose names begin with the prefix, sorted."""
    asked = Request(index, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(asked, timeout=60) as answer:
        text = answer.read().decode("utf-8")
    try:
        found = [one["name"] for one in json.loads(text)["projects"]]
    except json.JSONDecodeError:  # an index without JSON: a page of links with the names as texts
        found = [html.unescape(name.strip()) for name in re.findall(r"<a\b[^>]*>([^<]*)</a>", text)]
    return sorted((name for name in found if normalized(name).startswith(PREFIX)), key=normalized)


def normalized(name: str) -> str:
    """The name in the form in which an index compares names: `Lensbridge_Foo` is `lensbridge-foo`.

    See https://packaging.python.org/en/latest/specifications/name-normalization/.
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def checked(package: str) -> dict[str, Any]:
    """The record of one package: its version, its plugins, and what the kit found."""
    with tempfile.TemporaryDirectory() as folder:
        python, report = Path(folder, "env", "bin", "python"), Path(folder, "report.json")
        install = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", str(ROOT), package]
        _run([sys.executable, "-m", "venv", str(python.parent.parent)])
        done = _run([*install, "transformers"])
        if done.returncode:
            return _failed(package, f"it cannot be installed: {_last(done.stderr)}")
        lines = _run([str(python), "-c", _PLUGINS]).stdout.splitlines()
        plugins = _of(package, [line.split() for line in lines])
        if not plugins:
            return _failed(package, "it has no entry point in the group lensbridge")
        found = []
        for _, _, plugin in plugins:
            command = [str(python), "-m", "lensbridge", "adapters", plugin, "--check"]
            done = _run([*command, "--report", str(report)])
            if not report.exists():
                return _failed(package, _last(done.stderr))
            found.append(json.loads(report.read_text(encoding="utf-8")))
            report.unlink()
    worst = next((one for one in found if not one["passed"]), found[0])
    models = sorted({model for one in found for model in one["models"]})
    name, version, _ = plugins[0]
    return {"package": name, "version": version, **worst, "models": models}


def _of(package: str, plugins: list[list[str]]) -> list[list[str]]:
    """The plugins of a package, without those of packages that it needs.

    The name of a package's file begins with the package's; if no plugin is of that name, all are.
    """
    name = normalized(re.split(r"[=<>!~\[ @]", Path(package).name)[0])
    return [one for one in plugins if f"{name}-".startswith(f"{normalized(one[0])}-")] or plugins


def _failed(package: str, why: str) -> dict[str, Any]:
    return {"package": package, "version": "", "passed": False, "message": why, "models": []}


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command, at most for half an hour, so that one package cannot take the whole night."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    try:
        return subprocess.run(command, cwd=tempfile.gettempdir(), timeout=LONGEST, **options)
    except subprocess.TimeoutExpired:
        why = f"it took longer than {LONGEST // 60} minutes"
        return subprocess.CompletedProcess(command, 1, "", why)


def _last(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "it said nothing")


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """The page of these records."""
    rows = [
        [
            f"{one['package']} {one['version']}".strip(),
            ", ".join(one["models"]),
            f"{'conforms' if one['passed'] else 'fails'}: {one['message']}",
        ]
        for one in records
    ]
    if not rows:
        return f"{_HEAD}No such package is known yet.\n"
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([f"{_HEAD}| package | models | the last check |\n|---|---|---|", *lines, ""])


def _cell(text: str) -> str:
    """Text of other people in a cell of a table: in one line, without marks of Markdown."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", line)


def main(arguments: list[str]) -> int:
    """Do what the arguments say; the exit status."""
    shown = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--run", nargs="*", metavar="NAME")
    given = parser.parse_args(arguments)
    if given.run is not None:
        packages = given.run or names(os.environ.get("PIP_INDEX_URL", INDEX))
        records = [checked(package) for package in packages]
        RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    text = page(records)
    if given.check:
        same = PAGE.read_text(encoding="utf-8") == text
        if not same:
            print("docs/adapters.md is not what docs/adapters.json says: python docs/adapters.py")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0 if all(one["passed"] for one in records) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
