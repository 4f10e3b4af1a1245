"""README.md: an example that runs, two commands to set up, links to what is supported.

tests/test_pages.py runs its code.
"""

from pages import ROOT, Page

README = Page(ROOT / "README.md")


def test_the_readme_has_an_example_that_runs_and_prints() -> None:
    first, *_ = (block for block in README.blocks if block.kind == "python")
    assert first.needs is None
    assert first.printed
    lines = [line for line in first.code.splitlines() if line and not line.startswith("# ->")]
    assert len(lines) <= 15


def test_the_readme_has_two_commands_to_set_up_and_the_makefile_knows_them() -> None:
    shells = [block.code for block in README.blocks if block.kind == "sh"]
    commands = [line for code in shells for line in code.split("\n")]
    assert [line.split("#")[0].strip() for line in commands if line] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in ("demo", "test"))


def test_the_readme_leads_to_every_supported_type() -> None:
    assert "(docs/coverage.md)" in README.text
    coverage = (ROOT / "docs" / "coverage.md").read_text()
    for kind in ("decoder", "encoder", "vision"):
        assert kind in coverage
