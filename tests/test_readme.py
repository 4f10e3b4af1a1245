"""The code in README.md and in the pages of docs/ runs and prints what the page says it prints.

A line `# -> text` in a block is what the block prints there. A block that begins with the line
`# needs the hub` is compiled and not run. The blocks of a page share their names, in order.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_THE_HUB = "# needs the hub"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of code of a page, and the line of the page on which it begins."""

    page: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def printed(self) -> list[str]:
        """What the page says that the block prints."""
        return re.findall(r"^\s*# -> (.*)$", self.code, re.MULTILINE)

    def compiled(self) -> Any:
        """The code, with the page's own line numbers for tracebacks."""
        return compile("\n" * self.line + self.code, self.page, "exec")


def blocks_of(page: Path) -> list[Block]:
    """The Python blocks of a page."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    return [
        Block(name, text[: found.start()].count("\n") + 1, found[2])
        for found in FENCED.finditer(text)
        if found[1] == "python"
    ]


PAGES = {
    str(page.relative_to(ROOT)): blocks
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if (blocks := blocks_of(page))
}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in PAGES[page]:
        code = block.compiled()
        if not block.code.startswith(NEEDS_THE_HUB):
            exec(code, names)
            assert capsys.readouterr().out.splitlines() == block.printed, str(block)


def test_the_readme_has_an_example_that_runs_and_prints() -> None:
    first, *_ = PAGES["README.md"]
    assert not first.code.startswith(NEEDS_THE_HUB)
    assert first.printed
    lines = [line for line in first.code.splitlines() if line and not line.startswith("# ->")]
    assert len(lines) <= 15


def test_the_readme_has_two_commands_to_set_up_and_the_makefile_knows_them() -> None:
    commands = [
        line for kind, code in FENCED.findall(README) if kind == "sh" for line in code.split("\n")
    ]
    assert [line.split("#")[0].strip() for line in commands if line] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in ("demo", "test"))


def test_the_readme_leads_to_every_supported_type() -> None:
    assert "(docs/coverage.md)" in README
    coverage = (ROOT / "docs" / "coverage.md").read_text()
    for kind in ("decoder", "encoder", "vision"):
        assert kind in coverage
