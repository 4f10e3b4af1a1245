"""Loading from a local folder, beside HuggingFace's own loading of the same folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import memory
from benchmarks.checks import require_equal
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, interleave


def rows(one: Specimen, effort: Effort, fresh: Effort) -> Iterator[Row]:
    """Time and peak memory of a load, the memory in `fresh` processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from time_rows(one, folder, effort)
        yield from memory.load_rows(folder, one.name, fresh)


def time_rows(one: Specimen, folder: Path, effort: Effort) -> Iterator[Row]:
    """Save a model in a folder and time its loading from there."""
    ours, theirs = memory.loader("lensbridge"), memory.loader("hf")
    one.hf.save_pretrained(folder)
    require_equal(ours(folder)(one.ids), theirs(folder)(one.ids).logits, "logits after loading")
    work = {"lensbridge": lambda: ours(folder), "hf": lambda: theirs(folder)}
    ratio = interleave(work, effort).ratio("lensbridge", "hf")
    yield Row("load from a folder", one.name, "HF from_pretrained", ratio, 1.0)
