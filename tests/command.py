"""Runs of the command line, in this process and in one of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from lensbridge.cli import main

CLEAN = "The Eiffel Tower is in the city of"
CORRUPTED = "The Galata Tower is in the city of"


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, all of it, as JSON that every reader takes."""
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> Ran:
    """Run it in this process."""
    capsys.readouterr()
    status = main([str(one) for one in argv])
    said = capsys.readouterr()
    return Ran(status, said.out, said.err)


def run_alone(argv: Sequence[object], **environment: str) -> Ran:
    """Run it in a process of its own, as a user does."""
    script = "import sys; from lensbridge.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, argv)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )
    return Ran(done.returncode, done.stdout, done.stderr)
