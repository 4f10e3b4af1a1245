"""Time of the usual work on a model of GPT-2's size, each tool in its own way.

All tools of one environment run in one process, in turn, on the same random weights, and every
result is checked before anything is timed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison.outcomes import first_line, gap
from benchmarks.comparison.runs import CONTENDERS
from benchmarks.comparison.workload import CELLS, LAYERS, TOKENS
from benchmarks.timing import Effort, Spread, interleave

EFFORT = {
    "idle": Effort(seconds=12, least=7),
    "stream": Effort(seconds=12, least=7),
    "everything": Effort(seconds=15, least=5),
    "edits": Effort(seconds=12, least=7),
    "sweep": Effort(seconds=40, least=3, warm_up=False),
}
TITLES = {
    "idle": "a forward pass, nothing attached",
    "stream": "cache `resid_post` of all 12 layers",
    "everything": "cache everything that the tool lists",
    "edits": "one forward pass with 32 edits",
    "sweep": "patch `resid_pre`, 12 layers x 15 positions",
}


def measure(tools: list[str], works: list[str] | None = None) -> dict[str, Any]:
    """Seconds of the bare model, and each tool's time as a multiple of it."""
    contenders = {name: CONTENDERS[name]() for name in ["bare", *tools]}
    found: dict[str, Any] = {}
    for work in works or list(TITLES):
        found[work] = _one(work, contenders)
    return found


def _one(work: str, contenders: dict[str, Any]) -> dict[str, Any]:
    wanted = getattr(contenders["bare"], work)()
    ready: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, contender in contenders.items():
        run = getattr(contender, work, None)
        if run is None:
            missing[name] = "not offered"
            continue
        try:
            off = gap(_cells(run()), wanted)
            if off > 1e-4:
                missing[name] = f"another result: off by {off:.0e}"
                continue
        except Exception as error:
            missing[name] = first_line(error)
            continue
        ready[name] = partial(_quiet, run)
    samples = interleave(ready, EFFORT[work])
    ratios = {name: samples.ratio(name, "bare") for name in ready if name != "bare"}
    share = {name: len(CELLS) / (LAYERS * TOKENS) for name in _whole(contenders, work)}
    return {
        "seconds": Spread.of(samples.seconds["bare"]).middle,
        "rounds": len(samples.seconds["bare"]),
        "ratios": {
            name: [number * share.get(name, 1) for number in (one.low, one.middle, one.high)]
            for name, one in ratios.items()
        },
        "missing": missing,
    }


def _cells(found: Tensor) -> Tensor:
    """Of a whole sweep, the cells that the others run."""
    grid = found.shape == (LAYERS, TOKENS)
    return torch.stack([found[cell] for cell in CELLS]) if grid else found


def _whole(contenders: dict[str, Any], work: str) -> list[str]:
    """Tools that run all of a sweep while the bare model runs some of its cells."""
    return [name for name, one in contenders.items() if work == "sweep" and hasattr(one, "whole")]


def _quiet(run: Callable[[], object]) -> None:
    with torch.no_grad():
        run()
