"""What an import costs, each in a fresh process.

`import lensbridge` alone imports nothing else until something is used, so what a user pays by the
time that there is a model is measured too.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Row
from benchmarks.timing import Effort, Samples

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 1.1
_TORCH = "import torch"
_OURS = ("import lensbridge", "from lensbridge import LensModel, load")
_CHILD = """
import time
start = time.process_time()
{statement}
print(time.process_time() - start)
"""


def rows(effort: Effort) -> Iterator[Row]:
    """Imports of lensbridge beside an import of torch."""
    statements = (_TORCH, *_OURS)
    rounds = [{one: seconds(one) for one in statements} for _ in range(effort.least)]
    warm = rounds[1:] or rounds  # the first one also reads the disk
    samples = Samples({one: [times[one] for times in warm] for one in statements})
    for one in _OURS:
        yield Row(one, "", _TORCH, samples.ratio(one, _TORCH), BUDGET)


def seconds(statement: str) -> float:
    """Processor time of an import in a fresh process."""
    command = [sys.executable, "-c", _CHILD.format(statement=statement)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)
