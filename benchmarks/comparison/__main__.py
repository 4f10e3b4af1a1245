"""Run the comparison and write docs/comparison.md.

    python -m benchmarks.comparison                      everything, in about ten minutes
    python -m benchmarks.comparison --only correctness   cases, features, coverage, dependencies
    python -m benchmarks.comparison --only speed         times, memory and imports
    python -m benchmarks.comparison --check              exit with 1 if the page is not the record's

`make comparison` makes the environments first. Each part runs with each tool in a process of its
own, with the tool's own environment; what was not run stays as it is in docs/comparison.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.comparison.page import page

ROOT = Path(__file__).resolve().parents[2]
RECORD, PAGE = ROOT / "docs" / "comparison.json", ROOT / "docs" / "comparison.md"
ENVIRONMENTS = Path(os.environ.get("COMPARISON_ENVIRONMENTS", ROOT / "build" / "comparison"))
SHARED = {
    "lensbridge": "lensbridge",
    "TransformerLens": "transformer-lens",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
}
"""Tools of the shared environment, with their distributions."""

APART = {"nnterp": "nnterp", "circuit-tracer": "circuit-tracer"}
TOOLS = {**SHARED, **APART}
SECONDS = 600


def run(tool: str, part: str, *arguments: str) -> Any:
    """A part of the comparison in the environment of a tool; None if its process died."""
    home = ENVIRONMENTS / ("shared" if tool in SHARED else tool)
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "adapters", ROOT / "tests")))
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile(suffix=".json") as target:
        command = [str(home / "bin" / "python"), "-m", "benchmarks.comparison.worker", target.name]
        print(f"  {tool}: {part} {' '.join(arguments)}", file=sys.stderr)
        done = subprocess.run(
            [*command, part, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, **quiet},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return None
        return json.loads(Path(target.name).read_text(encoding="utf-8"))


def correctness(found: dict[str, Any]) -> None:
    """Cases, features, coverage and what installations bring."""
    titles = run("lensbridge", "titles")
    found["costs"] = {tool: run(tool, "costs", tool, name) for tool, name in TOOLS.items()}
    found["apart"] = told_apart(found["costs"])
    features = {tool: run(tool, "features", tool) for tool in TOOLS}
    found["features"] = {"titles": titles["features"], "outcomes": _there(features)}
    cases = {tool: run(tool, "cases", tool) for tool in TOOLS if tool != "circuit-tracer"}
    found["cases"] = {**titles["cases"], "outcomes": _there(cases)}
    sample = {tool: run(tool, "coverage", tool) for tool in ("nnsight", "nnterp", "pyvene")}
    found["coverage"] = {"recorded": run("lensbridge", "recorded"), "sample": _there(sample)}


def speed(found: dict[str, Any]) -> None:
    """Times, memory and imports."""
    load = os.getloadavg()[0]
    found["imports"] = _there({tool: run(tool, "imports", tool) for tool in TOOLS})
    shared, apart = run("lensbridge", "speed", *SHARED), run("nnterp", "speed", "nnterp")
    for work, one in shared.items():
        for field in ("ratios", "missing"):
            one[field] |= apart[work][field]
    tools = ("bare", *SHARED, "nnterp")
    memory = {
        work: {
            one: run("nnterp" if one == "nnterp" else "lensbridge", "memory", one, work)
            for one in tools
        }
        for work in ("stream", "everything")
    }
    found["speed"] = {
        "titles": run("lensbridge", "titles")["speed"],
        "works": shared,
        "memory": memory,
        "when": time.strftime("%Y-%m-%d"),
        "load": load,
    }


def told_apart(costs: dict[str, Any]) -> str:
    """Why some tools have environments of their own, from what they ask for."""
    nnterp, tracer = costs["nnterp"], costs["circuit-tracer"]
    return (
        "lensbridge, TransformerLens, nnsight and pyvene share one environment. nnterp "
        f"{nnterp['version']} does not import with the newest nnsight and runs with nnsight "
        f"{nnterp['with']['nnsight']}. circuit-tracer asks for {tracer['pins'][-1]}, "
        "so it runs apart with TransformerLens "
        f"{tracer['with']['transformer-lens']} and is not in the tables of correctness and time."
    )


def _there(found: dict[str, Any]) -> dict[str, Any]:
    return {tool: one for tool, one in found.items() if one is not None}


PARTS = {"correctness": correctness, "speed": speed}


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked; 1 if a check fails."""
    parser = argparse.ArgumentParser("python -m benchmarks.comparison")
    parser.add_argument("--only", choices=PARTS, help="one part; the other stays as it is")
    parser.add_argument("--check", action="store_true", help="does the page match the record")
    asked = parser.parse_args(arguments)
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if asked.check:
        current = PAGE.read_text(encoding="utf-8") == page(found)
        print(f"docs/comparison.md is {'up to date' if current else 'not what the record gives'}")
        return not current
    for name, part in PARTS.items():
        if asked.only in (None, name):
            part(found)
            RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
