"""README.md: an example that runs, two commands to set up, links to what is supported.

tests/test_pages.py runs its code.
"""

import re

from pages import ROOT, Page

README = Page(ROOT / "README.md")


def test_the_readme_begins_with_a_short_example_that_makes_the_picture() -> None:
    first, second, *_ = (block for block in README.blocks if block.kind == "python")
    assert first.needs is second.needs is None
    picture = re.search(r"!\[[^\]]+\]\(docs/images/(\w+\.png)\)", README.text)
    assert picture is not None
    assert f'.save("{picture[1]}")' in first.code
    assert second.printed
    lines = [line for line in first.code.splitlines() if line.strip()]
    assert len(lines) <= 15


def test_every_command_of_the_readme_is_one_that_there_is() -> None:
    shells = [block.code for block in README.blocks if block.kind == "sh"]
    commands = [line.split("#")[0].strip() for code in shells for line in code.split("\n")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {"make demo", "make test"} <= set(commands)
    for command in filter(None, commands):
        if command.startswith("make "):
            assert f"\n{command.removeprefix('make ')}:" in makefile
        elif found := re.fullmatch(r"pip install '?lensbridge(?:\[([\w,]+)\])?'?", command):
            extras = found[1].split(",") if found[1] else []
            assert all(f"\n{extra} = [" in project for extra in extras)
        else:
            assert command.startswith("lensbridge "), command


def test_the_readme_leads_to_every_supported_type() -> None:
    assert "(docs/coverage.md)" in README.text
    coverage = (ROOT / "docs" / "coverage.md").read_text()
    for kind in ("decoder", "encoder", "vision"):
        assert kind in coverage
