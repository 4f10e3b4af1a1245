"""What an installation brings, and what an import takes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from statistics import median
from typing import Any

from packaging.requirements import Requirement

BASE = ("torch", "transformers")
IMPORTS = {
    "lensbridge": "from lensbridge import LensModel, load",
    "TransformerLens": "from transformer_lens.model_bridge import TransformerBridge",
    "nnsight": "from nnsight import TransformersModel",
    "nnterp": "from nnterp import StandardizedTransformer",
    "pyvene": "from pyvene import IntervenableModel",
    "circuit-tracer": "from circuit_tracer import ReplacementModel, attribute",
}
"""What a user imports before there is a model."""

_TIMED = "import time; start = time.process_time()\n{}\nprint(time.process_time() - start)"
ROUNDS = 4


def installed_by(name: str) -> dict[str, Any]:
    """The packages that a distribution needs beyond torch and transformers, and their size."""
    known = _closure(BASE)
    brought = sorted(_closure([name]) - known - {_plain(name)})
    own = _size(distribution(name))
    return {
        "packages": brought,
        "own_bytes": own,
        "bytes": own + sum(_size(distribution(one)) for one in brought),
    }


def _closure(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = [_plain(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for other systems
        found.add(name)
        wanted = [Requirement(one) for one in needs]
        waiting += [
            _plain(one.name)
            for one in wanted
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _size(one: Distribution) -> int:
    """Bytes of the installed files, without bytecode; of an editable install, of its sources."""
    files = [file for file in one.files or [] if file.suffix not in (".pyc", ".pth")]
    total = sum(os.path.getsize(file.locate()) for file in files if file.locate().is_file())
    if any(file.suffix == ".pth" for file in one.files or []):
        root = Path(__file__).resolve().parents[2]
        for folder in (root / "lensbridge", root / "adapters" / "lensbridge_adapters"):
            kept = (file for file in folder.rglob("*") if file.suffix != ".pyc" and file.is_file())
            total += sum(file.stat().st_size for file in kept)
    return total


def import_seconds(statement: str) -> float:
    """Processor time of an import in a fresh process: the median, after one to warm the disk."""
    command = [sys.executable, "-W", "ignore", "-c", _TIMED.format(statement)]

    def once() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    return median([once() for _ in range(ROUNDS)][1:])
