"""One part of the comparison with one tool, in the tool's own environment, as JSON in a file."""

import json
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.comparison import costs
from benchmarks.comparison.outcomes import attempt

# What a part needs is imported in it: circuit-tracer's environment has no lensbridge.


def cases(name: str) -> dict[str, Any]:
    """Every case on its families."""
    from benchmarks.comparison.cases import CASES, Bench
    from benchmarks.comparison.families import FAMILIES
    from benchmarks.comparison.tools import tool

    used = tool(name)
    with torch.no_grad():
        return {
            one.key: {
                family: attempt(lambda f=family, c=one: c.run(Bench(used, FAMILIES[f]))).as_json()  # type: ignore[misc]
                for family in one.families
            }
            for one in CASES
        }


def features(name: str) -> dict[str, Any]:
    """Every feature."""
    from benchmarks.comparison.probes import FEATURES, probe

    with torch.no_grad():
        return {key: attempt(lambda k=key: probe(name, k)).as_json() for key in FEATURES}  # type: ignore[misc]


def costs_of(name: str, distribution: str) -> dict[str, Any]:
    """Versions and what an installation brings."""
    shared = ("torch", "transformers", "transformer-lens", "nnsight")
    needs = [one for one in requires(distribution) or [] if "extra ==" not in one]
    return {
        "version": version(distribution),
        "with": {
            one: version(one) for one in shared if one in _installed() and one != distribution
        },
        "pins": [one for one in needs if any(one.startswith(other) for other in shared)],
        **costs.installed_by(distribution),
    }


def _installed() -> set[str]:
    from importlib.metadata import distributions

    return {str(one.metadata["Name"]).lower() for one in distributions()}


def imports(name: str) -> dict[str, float]:
    """Seconds of the import, and of torch and transformers alone."""
    base = costs.import_seconds("import torch, transformers")
    return {"seconds": costs.import_seconds(costs.IMPORTS[name]), "base": base}


def titles() -> dict[str, Any]:
    """The lines of the tables."""
    from benchmarks.comparison import speed
    from benchmarks.comparison.cases import CASES
    from benchmarks.comparison.families import FAMILIES
    from benchmarks.comparison.probes import FEATURES

    return {
        "cases": {"titles": {one.key: one.title for one in CASES}, "families": list(FAMILIES)},
        "features": {key: one.title for key, one in FEATURES.items()},
        "speed": speed.TITLES,
    }


def covers(name: str) -> dict[str, str]:
    """Model types of the sample."""
    from benchmarks.comparison import coverage

    return coverage.covers(name)


def recorded() -> dict[str, Any]:
    """What docs/coverage.json says."""
    from benchmarks.comparison import coverage

    return coverage.recorded()


def timed(*names: str) -> dict[str, Any]:
    """All work with some tools."""
    from benchmarks.comparison import speed

    with torch.no_grad():
        return speed.measure(list(names))


def peak(name: str, work: str) -> int | None:
    """Memory of some work."""
    from benchmarks.comparison import memory

    return memory.peak(name, work)


PARTS: dict[str, Any] = {
    "cases": cases,
    "features": features,
    "costs": costs_of,
    "titles": titles,
    "coverage": covers,
    "recorded": recorded,
    "imports": imports,
    "speed": timed,
    "memory": peak,
}


def main(target: str, part: str, *arguments: str) -> None:
    """Run a part and write what it gives."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    Path(target).write_text(json.dumps(PARTS[part](*arguments)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
