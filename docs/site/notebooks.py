"""Notebooks as pages. Pictures are shown as lensbridge makes them, where a run has left them.

A notebook in docs/tutorials has its pictures as PNG, which GitHub shows. `running.py` leaves a copy
in build/site/tutorials with the pictures as HTML, which follow the theme of the page.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def read(path: Path) -> list[Cell]:
    """The cells of a notebook."""
    cells: list[Cell] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def text(lines: list[str] | str) -> str:
    """Text as notebooks keep it."""
    return "".join(lines)


def page(path: Path, folder: Path, place: Path) -> str:
    """A notebook as Markdown. Pictures that it has as PNG alone are written beside it.

    Args:
        path: the notebook.
        folder: where copies with the pictures as lensbridge makes them may be.
        place: the page that the text is for.
    """
    cells, ran = read(path), folder / path.name
    if ran.is_file():
        fresh = read(ran)
        same = [text(cell["source"]) for cell in fresh] == [text(cell["source"]) for cell in cells]
        cells = fresh if same else cells
    note = f"*This page is a notebook, `docs/tutorials/{path.name}`.*"
    title, *parts = [part for cell in cells for part in _cell(cell, place)]
    heading, _, rest = title.partition("\n\n")
    return "\n\n".join([heading, rest, note, *parts]) + "\n"


def _cell(cell: Cell, place: Path) -> Iterator[str]:
    if cell["cell_type"] == "markdown":
        yield text(cell["source"])
        return
    yield f"```python\n{text(cell['source'])}\n```"
    for number, output in enumerate(cell["outputs"]):
        yield _output(output, place.parent / f"{place.stem}-{cell['id']}-{number}.png")


def _output(output: dict[str, Any], picture: Path) -> str:
    if output["output_type"] == "stream":
        return _printed(output["text"])
    data = output["data"]
    if "text/html" in data:
        markup = re.sub(r"\n\s*\n", "\n", text(data["text/html"]))
        return f'<div class="shown" data-search-exclude>\n{markup}\n</div>'
    if "image/png" in data:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(text(data["image/png"])))
        return f"![picture]({picture.name}){{ .shown }}"
    return _printed(data["text/plain"])


def _printed(lines: list[str] | str) -> str:
    return f"```{{ .text .printed }}\n{text(lines).rstrip()}\n```"
