"""The record of checks as JSON: what was checked, with which versions, and what a badge shows."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lensbridge.conformance.check import Row
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.held_blocks import unheld
from lensbridge.errors import InputError
from lensbridge.versions import TESTED, installed

FORMAT = "lensbridge.conformance/1"

GREEN = "brightgreen"
"""The colour of the badge if every check ran and none failed."""


def record(rows: Iterable[Row], *, left_out: int = 0) -> dict[str, Any]:
    """The record of the rows of one or several reports.

    `label`, `message` and `color` are what a badge shows. `passed` is for every check of the kit: a
    run of some of them has not passed. The badge is not green either if no layer of a model is read
    with a block that is described.

    Args:
        rows: the rows.
        left_out: how many checks were not run at all, besides those that a model has no row for.

    Example:
        >>> from lensbridge.testing import conformance
        >>> from lensbridge_adapters.gpt2 import GPT2
        >>> told = record(conformance(GPT2).rows)
        >>> told["passed"], told["color"], told["models"]
        (True, 'brightgreen', ['GPT2LMHeadModel'])
    """
    listed = list(dict.fromkeys(rows))
    counts = {
        status: sum(row.status == status for row in listed)
        for status in ("passed", "failed", "skipped")
    }
    left_out = max(left_out, _without_row(listed))
    verdict, color = _verdict(counts, left_out, unheld(listed))
    versions = {one.package: str(installed(one.package)) for one in TESTED}
    return {
        "format": FORMAT,
        "label": "lensbridge",
        "message": f"{verdict}, transformers {versions['transformers']}",
        "color": color,
        "passed": bool(counts["passed"]) and not counts["failed"] and not left_out,
        "counts": {**counts, "left out": left_out},
        "versions": versions,
        "models": sorted({row.model for row in listed}),
        "failures": [
            {
                "check": row.check,
                "model": row.model,
                "variant": row.variant,
                "about": row.about,
                "detail": row.detail,
            }
            for row in listed
            if row.status == "failed"
        ],
    }


def badge(told: dict[str, Any]) -> dict[str, Any]:
    """The badge of a record, in the form of https://shields.io/badges/endpoint-badge.

    It has no other keys, because a file with others is refused there.
    """
    return {"schemaVersion": 1, **{key: told[key] for key in ("label", "message", "color")}}


def _verdict(counts: dict[str, int], left_out: int, missed: Sequence[str]) -> tuple[str, str]:
    """What a badge says, and its colour."""
    passed, failed = counts["passed"], counts["failed"]
    if failed:
        return ("1 check fails" if failed == 1 else f"{failed} checks fail"), "red"
    if not passed:
        return "nothing was checked", "lightgrey"
    told = "1 check" if passed == 1 else f"{passed} checks"
    if left_out:
        return f"partial run of {told}", "yellow"
    return (f"{told}, not held: {', '.join(missed)}", "yellow") if missed else (told, GREEN)


def _without_row(rows: Sequence[Row]) -> int:
    """How many checks have no row for a model and variant that others have one for."""
    names = {check.name for check in CHECKS}
    ran: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.check in names:
            ran.setdefault((row.model, row.variant), set()).add(row.check)
    return sum(len(names - found) for found in ran.values())


def prepare(file: Path) -> None:
    """Make the folder of a file that is written after the checks.

    Raises:
        InputError: there can be no such file.
    """
    if file.is_dir():
        raise InputError(f"The report cannot be written: {file} is a folder. Name a file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The report {file} cannot be written: {error.strerror}.") from error


def write(file: Path, told: dict[str, Any]) -> None:
    """Write a record as JSON, and its badge beside it: `conformance-badge.json`."""
    beside = file.with_name(f"{file.stem}-badge{file.suffix}")
    for path, content in ((file, told), (beside, badge(told))):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
