"""Tutorials: notebooks that are run, kept with what they print and draw, and shown as pages.

A notebook in docs/tutorials has its pictures as PNG, which GitHub shows. A run also leaves a copy
in build/site/tutorials with the pictures as lensbridge makes them, which follow the theme of the
page; the site shows these where they are.
"""

import base64
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
PREPARE = """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
from lensbridge import viz as _viz
_png = get_ipython().display_formatter.formatters["image/png"]
for _kind in (_viz.Picture, _viz.Drawn):
    _png.for_type(_kind, lambda shown: (
        shown if isinstance(shown, _viz.Picture) else shown.plot()).png(scale=1.5))
"""
"""What a run adds to a notebook: pictures are PNG too, and results do not depend on the machine."""
COLOURS = 64
Cell = Any


def run(path: Path, folder: Path, write: bool) -> bool:
    """Run a notebook, and say whether it printed something else than it says.

    Args:
        path: the notebook.
        folder: where the copy with the pictures as lensbridge makes them is put.
        write: keep what was printed and drawn.
    """
    said = nbformat.read(path, as_version=4)
    ran = _executed(nbformat.read(path, as_version=4))
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(ran, folder / path.name)
    differs = list(_printed(said)) != list(_printed(ran))
    if write:
        nbformat.write(_committed(ran), path)
    return differs


def _executed(notebook: Any) -> Any:
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with client.setup_kernel():
        client.kc.execute(PREPARE, store_history=False, reply=True, timeout=120)
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def _outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def _printed(notebook: Any) -> Iterator[str]:
    """What the cells printed, and the values that are not pictures."""
    for output in _outputs(notebook):
        if output.output_type == "stream":
            yield output.text
        elif not {"text/html", "image/png"} & set(output.data):
            yield output.data["text/plain"]


def _committed(notebook: Any) -> Any:
    """A notebook with small PNGs in place of markup and drawings."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for output in _outputs(notebook):
        if "image/png" in output.get("data", ()):
            small = _small(base64.b64decode(output.data["image/png"]))
            png = base64.b64encode(small).decode()
            output.data = {"image/png": png, "text/plain": output.data["text/plain"]}
    return notebook


def _small(png: bytes) -> bytes:
    """A picture in few colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS)
    kept = io.BytesIO()
    picture.save(kept, "PNG", optimize=True)
    return kept.getvalue()


def page(path: Path, folder: Path, place: Path) -> str:
    """A notebook as Markdown. Pictures that it has as PNG alone are written beside it.

    Args:
        path: the notebook.
        folder: where copies with the pictures as lensbridge makes them may be.
        place: the page that the text is for.
    """
    ran = folder / path.name
    notebook = nbformat.read(path, as_version=4)
    if ran.is_file():
        fresh = nbformat.read(ran, as_version=4)
        same = [cell.source for cell in fresh.cells] == [cell.source for cell in notebook.cells]
        notebook = fresh if same else notebook
    note = f"*This page is a notebook: `docs/tutorials/{path.name}`.*"
    parts = [part for cell in notebook.cells for part in _cell(cell, place)]
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"


def _cell(cell: Cell, place: Path) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for number, output in enumerate(cell.outputs):
        if output.output_type == "stream":
            yield f"```{{ .text .printed }}\n{output.text.rstrip()}\n```"
        elif "text/html" in output.data:
            markup = re.sub(r"\n\s*\n", "\n", output.data["text/html"])
            yield f'<div class="shown" data-search-exclude>\n{markup}\n</div>'
        elif "image/png" in output.data:
            name = f"{place.stem}-{cell.id}-{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            (place.parent / name).write_bytes(base64.b64decode(output.data["image/png"]))
            yield f"![picture]({name}){{ .shown }}"
        else:
            yield f"```{{ .text .printed }}\n{output.data['text/plain']}\n```"
