"""Run every check that needs a GPU, and print one table.

    python -m benchmarks.gpu                  on the first CUDA device, and a second one
    python -m benchmarks.gpu --only compiled "device map"
    python -m benchmarks.gpu --device cpu     a dry run on a tiny model: do the checks run

It ends with 0 if all checks that can run here hold, with 1 if one does not, and with 3 if there is
no CUDA device.
"""

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.gpu_checks import CHECKS, NotHereError, Place
from benchmarks.specimens import Shape

NO_GPU = 3
HEADS = ("check", "verdict", "seconds", "what was found")
TINY = Shape(layers=2, width=24, heads=3, vocab=64, batch=2, positions=8)
SMALL = Shape(layers=12, width=768, heads=12, vocab=32000, batch=4, positions=256)

Verdict = Literal["holds", "fails", "not here"]


@dataclass(frozen=True)
class Row:
    """What came of one check."""

    check: str
    verdict: Verdict
    seconds: float
    found: str

    def cells(self) -> tuple[str, ...]:
        """What the columns hold."""
        return (self.check, self.verdict, f"{self.seconds:.1f}", self.found)


def rows(place: Place, names: Iterable[str]) -> Iterator[Row]:
    """The rows of some checks, as they are done."""
    for name in names:
        start = time.perf_counter()
        verdict, found = _outcome(place, name)
        yield Row(name, verdict, time.perf_counter() - start, found)


def _outcome(place: Place, name: str) -> tuple[Verdict, str]:
    try:
        return "holds", CHECKS[name](place)
    except NotHereError as reason:
        return "not here", str(reason)
    except Exception as error:  # the other checks go on
        lines = str(error).splitlines() or [""]
        return "fails", f"{type(error).__name__}: {lines[0]}"


def place_of(device: str) -> Place:
    """Where checks run: on the CPU with a tiny model, on a GPU with one that keeps it busy."""
    if device == "cpu":
        return Place("cpu", "cpu", TINY, torch.float32)
    index = torch.device(device).index or 0
    others = [i for i in range(torch.cuda.device_count()) if i != index]
    other = f"cuda:{others[0]}" if others else f"cuda:{index}"
    return Place(f"cuda:{index}", other, SMALL, torch.bfloat16)


def as_text(found: Iterable[Row]) -> str:
    """The table."""
    table = [HEADS, *(row.cells() for row in found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) for cells in table]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Check, print, and give the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="such as cuda, cuda:1 or cpu")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    asked = parser.parse_args(arguments)
    if asked.device != "cpu" and not torch.cuda.is_available():
        print("There is no CUDA device here. --device cpu tries the checks on a tiny model.")
        return NO_GPU
    place = place_of(asked.device)
    found = list(rows(place, asked.only))
    where = torch.cuda.get_device_name(place.device) if place.on_gpu else "the CPU, a dry run"
    print(f"torch {torch.__version__} on {where}; {place.shape}\n\n{as_text(found)}")
    return 1 if any(row.verdict == "fails" for row in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
