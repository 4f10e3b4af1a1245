"""Run the notebooks of docs/tutorials, and keep what they print and draw."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
PREPARE = """
import os, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where bars are off
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
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""The least by which Jupyter and ruff know that the cells are Python."""
COLOURS = 128


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
    if warned := [output.text for output in _outputs(ran) if output.get("name") == "stderr"]:
        raise SystemExit(f"{path.name} writes to stderr:\n{''.join(warned)}")
    differs = list(_printed(said)) != list(_printed(ran))
    if write:
        nbformat.write(_committed(ran), path)
    return differs


def _executed(notebook: Any) -> Any:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(PREPARE))
    where = {"metadata": {"path": str(ROOT)}}
    with TemporaryDirectory() as sockets:
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        NotebookClient(notebook, km=kernel, timeout=900, resources=where).execute()
    del notebook.cells[0]
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
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
    notebook.metadata = METADATA
    for output in _outputs(notebook):
        if "image/png" in output.get("data", ()):
            small = _small(base64.b64decode(output.data["image/png"]))
            png = base64.b64encode(small).decode()
            output.data = {"image/png": png, "text/plain": output.data["text/plain"]}
    return notebook


def _small(png: bytes) -> bytes:
    """A picture in few colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    kept = io.BytesIO()
    picture.save(kept, "PNG", optimize=True)
    return kept.getvalue()
