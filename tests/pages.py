"""The pages of the documentation: their blocks of code, and the rows of tables "there and here".

A line `# -> text` in a block is what the block prints there. A block whose first line is
`# needs the hub`, `# needs a GPU` or `# needs ` and a package is compiled, and the names of
lensbridge in it have to exist; what it needs is not there, so it is not run. The blocks of a page
share their names, in order.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"\|(.*)\|")
CELLS = re.compile(r"(?<!\\)\|")
NEEDS = re.compile(r"# needs (.+)\n")
SPAN = re.compile(r"`+ ?([^`]+?) ?`+")


@dataclass(frozen=True)
class Block:
    """One block of code of a page, and the line of the page on which it begins."""

    page: str
    line: int
    kind: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @cached_property
    def needs(self) -> str | None:
        """What the block needs that tests do not have."""
        found = NEEDS.match(self.code)
        return found[1] if found else None

    @property
    def printed(self) -> list[str]:
        """What the page says that the block prints."""
        return re.findall(r"^\s*# -> (.*)$", self.code, re.MULTILINE)

    def compiled(self) -> CodeType:
        """The code, with the page's own line numbers for tracebacks."""
        return compile("\n" * self.line + self.code, self.page, "exec")


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        """Its blocks of code, in order, and its rows: a block `row` is the column "lensbridge"."""
        found = [
            Block(str(self), self._line(block.start()), block[1], block[2])
            for block in FENCED.finditer(self.text)
        ]
        return sorted([*found, *self._rows("lensbridge")], key=lambda block: block.line)

    def _line(self, place: int) -> int:
        return self.text[:place].count("\n") + 1

    def _rows(self, column: str) -> Iterator[Block]:
        """The code in one column of the tables of tasks, a block for each row."""
        titles: list[str] = []
        for number, line in enumerate(self.text.splitlines(), 1):
            row = ROW.fullmatch(line)
            cells = [cell.strip() for cell in CELLS.split(row[1])] if row else []
            if cells[:1] == ["task"]:
                titles = cells
            elif len(cells) != len(titles):
                titles = []
            elif column in titles and set(cells[0]) != {"-"}:
                spans = SPAN.findall(cells[titles.index(column)].replace("\\|", "|"))
                yield Block(str(self), number, "row", "\n".join(spans) + "\n")

    def there(self, library: str) -> str:
        """What a reader wrote for another library: its blocks and its column, as one file."""
        blocks = [block for block in self.blocks if block.needs == library]
        rows = [ast.unparse(ast.parse(row.code)) for row in self._rows(library)]
        return "\n".join([*(block.code for block in blocks), *rows])

    def here(self) -> str:
        """What it writes for lensbridge, as one file."""
        return "\n".join(
            block.code
            for block in self.blocks
            if block.kind in ("python", "row") and not block.needs
        )


def pages() -> list[Page]:
    """README and the pages of docs/, without the reference, whose examples are doctests."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(path) for path in paths if path.parent.name != "api"]
