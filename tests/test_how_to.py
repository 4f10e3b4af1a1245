"""Every block of the guides in docs/how-to is run, from the top, in one folder.

Python runs here and prints what its lines `# -> text` say. Commands run in a shell, and a block
`text` behind them is what they print. A block that begins with a docstring is a file that a command
wrote; `toml` and `py` are pieces of the template in examples/adapter-template.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lensbridge.testing import CHECKS

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
TEMPLATE = ROOT / "examples" / "adapter-template"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_THE_FIT = "the description fits the model"
"""What a report calls a failure to load, which is no check of the kit."""


class Reader:
    """Someone who follows a guide in an empty folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def follow(self, kind: str, block: str) -> None:
        """Do what a block is for."""
        acts = {"python": self.python, "sh": self.sh, "text": self.text}
        acts.get(kind, self.piece)(block)

    def python(self, block: str) -> None:
        if block.startswith('"""'):
            written = [path.read_text(encoding="utf-8") for path in Path().glob("*.py")]
            assert block in written
        exec(compile(block, "guide", "exec"), self.names)
        promised = re.findall(r"^# -> (.*)$", block, re.MULTILINE)
        assert self.capsys.readouterr().out.splitlines() == promised

    def sh(self, block: str) -> None:
        beside = Path(sys.executable).parent
        path = os.pathsep.join([str(beside), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-e", "-c", block],
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.printed = done.stdout

    def text(self, block: str) -> None:
        assert block == self.printed

    def piece(self, block: str) -> None:
        files = [path.read_text(encoding="utf-8") for path in TEMPLATE.rglob("*.*[ly]")]
        for line in block.splitlines():
            assert any(line in file.splitlines() for file in files), line


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_every_block_of_a_guide_does_what_the_guide_says(
    guide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(capsys)
    for kind, block in FENCED.findall(guide.read_text(encoding="utf-8")):
        reader.follow(kind, block)


def test_the_checks_that_the_guide_explains_are_those_of_the_kit() -> None:
    page = (ROOT / "docs" / "how-to" / "add-an-architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)[1:]
    assert len(told) > 10
    assert set(told) - {check.name for check in CHECKS} == {OF_THE_FIT}
