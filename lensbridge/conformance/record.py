"""The record of checks as JSON: what was checked, with which versions, and what a badge shows."""

from collections.abc import Iterable
from typing import Any

from lensbridge.conformance.check import Row
from lensbridge.versions import TESTED, installed

FORMAT = "lensbridge.conformance/1"


def record(rows: Iterable[Row]) -> dict[str, Any]:
    """The record of the rows of one or several reports.

    `label`, `message` and `color` are what a badge shows; https://shields.io draws one from the
    address of the file, with the query `$.message`.

    Example:
        >>> from lensbridge.testing import conformance
        >>> from lensbridge_adapters.gpt2 import GPT2
        >>> told = record(conformance(GPT2).rows)
        >>> told["passed"], told["color"], told["models"]
        (True, 'brightgreen', ['GPT2LMHeadModel'])
    """
    listed = list(rows)
    counts = {
        status: sum(row.status == status for row in listed)
        for status in ("passed", "failed", "skipped")
    }
    passed = bool(counts["passed"]) and not counts["failed"]
    versions = {one.package: str(installed(one.package)) for one in TESTED}
    verdict = f"{counts['passed']} checks" if passed else f"{counts['failed']} checks fail"
    return {
        "format": FORMAT,
        "label": "lensbridge",
        "message": f"{verdict}, transformers {versions['transformers']}",
        "color": "brightgreen" if passed else "red",
        "passed": passed,
        "counts": counts,
        "versions": versions,
        "models": sorted({row.model for row in listed}),
        "failures": [
            {"check": row.check, "model": row.model, "variant": row.variant, "detail": row.detail}
            for row in listed
            if row.status == "failed"
        ],
    }
