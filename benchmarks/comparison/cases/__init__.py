"""Correctness: each case asks one question of a tool on one family.

A bare model answers it too. A case gets a `Bench` and returns an `Outcome`; what it raises is an
outcome as well. The order of the modules is the order of the table.
"""

from benchmarks.comparison.cases import (  # isort: skip
    reading,
    editing,
    results,
    afterwards,
    mistakes,
)
from benchmarks.comparison.cases.bench import CASES, Bench, Case

__all__ = ["CASES", "Bench", "Case", "afterwards", "editing", "mistakes", "reading", "results"]
