"""Measure lensbridge beside bare HuggingFace and, where it is installed, TransformerLens.

    python -m benchmarks            the table, in about fifteen minutes on one core
    python -m benchmarks --quick    small models and few rounds: does it run, not how fast
    python -m benchmarks --write    also write what was measured to docs/benchmarks.md
    python -m benchmarks --only host load       some groups: forward, sweep, host, ...

Everything runs in one process, interleaved, on random weights built offline. A result is a ratio:
lensbridge's processor time as a multiple of the other's, the median over rounds with its 95%
interval. Whatever is compared is first checked to compute the same.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
import transformers

import lensbridge
from benchmarks import (
    attributions,
    forwards,
    harvests,
    hosts,
    imports,
    loads,
    memory,
    rival,
    specimens,
    sweeps,
)
from benchmarks.report import Row, as_markdown, as_text
from benchmarks.specimens import Shape, Specimen
from benchmarks.timing import Effort

PEERS = {rival.NAME: "transformer-lens", "nnsight": "nnsight", "SAELens": "sae-lens"}
"""The field's tools, with what they are called on PyPI."""

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"

TEXT = """# Benchmarks

What lensbridge costs, beside bare HuggingFace and TransformerLens. Written by
`python -m benchmarks --write`; measure it on your own machine with `python -m benchmarks`.

A result is lensbridge's cost as a multiple of the other's: below 1 lensbridge is the cheaper one.
It is a median over rounds, with the interval that holds it with 95% confidence. All contenders run
in one process, in turn, in an order that changes from round to round, and the clock is the
processor time of the process. Weights are random; results are checked to be equal before anything
is timed: logits bit-identical to the bare model's, caches and sweeps equal between libraries.
Memory of a cache is counted by the allocations that torch reports, memory of a load by the kernel,
each load in a fresh process. A sweep of patches that others run one forward pass at a time is
timed on some of its cells there and in full here. Harvests and the loops beside them are timed with
what they write to the disk; loops write the same shards with safetensors, SAELens's caching runner
its own files.

GPT-2 and Llama are built from their configs: {gpt2}; {llama}; for sweeps with one prompt of the
length in the table. The tiny Llama has {deep}.
"""

SECTION = """
## {title}

{table}

Measured with {threads} on a CPU, with {versions}.
"""


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long.

    Args:
        shapes: of GPT-2 and Llama.
        deep: of the model that shows the host's cost.
        forward: effort for each comparison of forward passes.
        host: effort for the cost of hooks.
        load: effort for loads.
        fresh: effort for what needs fresh processes.
        lengths: of the prompts that sweeps go over.
        sweep: effort for each sweep.
        harvest: effort for each set of loops over a dataset.
    """

    shapes: tuple[Shape, Shape]
    deep: Shape
    forward: Effort
    host: Effort
    load: Effort
    fresh: Effort
    lengths: tuple[int, int, int]
    sweep: Effort
    harvest: Effort


FULL = Plan(
    shapes=(Shape(vocab=50257, positions=64), Shape(batch=2, positions=64)),
    deep=Shape(layers=32, width=64, heads=4, vocab=256, positions=16),
    forward=Effort(seconds=13, least=7),
    host=Effort(seconds=10),
    load=Effort(seconds=12),
    fresh=Effort(least=6),
    lengths=(15, 32, 128),
    sweep=Effort(seconds=30, least=2, warm_up=False),  # what is checked has run once
    harvest=Effort(seconds=120, warm_up=False),
)

QUICK = Plan(
    shapes=(Shape(4, 96, 6, 512, positions=32), Shape(4, 96, 6, 512, batch=2, positions=32)),
    deep=Shape(layers=8, width=32, heads=4, vocab=256, positions=8),
    forward=Effort(seconds=0.3, least=2),
    host=Effort(seconds=0.5, least=2),
    load=Effort(seconds=0.5, least=2),
    fresh=Effort(least=1),
    lengths=(4, 6, 8),
    sweep=Effort(seconds=0.5, least=1),
    harvest=Effort(seconds=0.5, least=1),
)


def forward_rows(plan: Plan) -> Iterator[Row]:
    """Forward passes and caches, on both models."""
    for one in _models(plan):
        for comparison in forwards.comparisons(one):
            yield from comparison.rows(one.name, plan.forward)
        yield from memory.cache_rows(one)


def sweep_rows(plan: Plan) -> Iterator[Row]:
    """Activation patches, on both models."""
    short, *longer = plan.lengths
    every = (sweeps.STREAM, sweeps.WHOLE_HEADS, sweeps.HEADS, sweeps.PATTERNS)
    for build, shape in zip((specimens.gpt2, specimens.llama), plan.shapes, strict=True):
        for length in (short, *longer):
            one = build(replace(shape, batch=1, positions=length))
            kinds = every if length == short else (sweeps.STREAM,)
            yield from sweeps.rows(one, kinds, plan.sweep)
            if length == longer[0]:
                yield from memory.sweep_rows(one, 32 * length)


def attribution_rows(plan: Plan) -> Iterator[Row]:
    """Gradients in the place of patches, on both models."""
    for build, shape in zip((specimens.gpt2, specimens.llama), plan.shapes, strict=True):
        one = build(replace(shape, batch=1, positions=plan.lengths[1]))
        yield from attributions.rows(one, plan.sweep)


def host_rows(plan: Plan) -> Iterator[Row]:
    """The cost of a hook."""
    deep = specimens.llama(plan.deep, f"Llama, {plan.deep.layers} tiny layers")
    yield from hosts.rows(deep, plan.host)


def harvest_rows(plan: Plan) -> Iterator[Row]:
    """Activations of a dataset, run and written."""
    shape = replace(plan.shapes[0], batch=8, positions=2 * plan.lengths[1])
    yield from harvests.rows(specimens.gpt2(shape), plan.harvest)


def load_rows(plan: Plan) -> Iterator[Row]:
    """Time and memory of a load."""
    yield from loads.rows(specimens.llama(plan.shapes[1]), plan.load, plan.fresh)


def import_rows(plan: Plan) -> Iterator[Row]:
    """Time of an import."""
    yield from imports.rows(plan.fresh)


GROUPS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "forward": forward_rows,
    "sweep": sweep_rows,
    "attribution": attribution_rows,
    "harvest": harvest_rows,
    "host": host_rows,
    "load": load_rows,
    "import": import_rows,
}

TITLES = {
    "forward": "Forward passes and caches",
    "sweep": "Sweeps of activation patches",
    "attribution": "Attribution patching",
    "harvest": "Harvests",
    "host": "The cost of a hook",
    "load": "Loading",
    "import": "Importing",
}


def measure(plan: Plan, groups: Iterable[str] = GROUPS) -> Iterator[tuple[str, Row]]:
    """The rows of some groups with the group, as they are measured."""
    with torch.no_grad():
        for group in groups:
            for row in GROUPS[group](plan):
                yield group, row


def _models(plan: Plan) -> Iterator[Specimen]:
    gpt2, llama = plan.shapes
    yield specimens.gpt2(gpt2)
    yield specimens.llama(llama)


def document(rows: Mapping[str, list[Row]], plan: Plan, before: str = "") -> str:
    """The text of docs/benchmarks.md.

    Args:
        rows: of the groups that were measured.
        plan: how.
        before: the text as it was; groups that were not measured stay as they are there.
    """
    gpt2, llama = plan.shapes
    text = TEXT.format(gpt2=gpt2, llama=llama, deep=plan.deep)
    sections = before.split("\n## ")[1:]
    old = {one.partition("\n")[0]: f"\n## {one}" for one in sections}
    for group, title in TITLES.items():
        text += _section(title, rows[group]) if group in rows else old.get(title, "")
    return text


def _section(title: str, rows: list[Row]) -> str:
    versions = {
        "lensbridge": lensbridge.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{name: version(found) for name, found in PEERS.items() if _is_installed(found)},
    }
    threads = torch.get_num_threads()
    return SECTION.format(
        title=title,
        table=as_markdown(rows),
        threads="one thread" if threads == 1 else f"{threads} threads",
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
    )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, perhaps write."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--threads", type=int, default=1, help="for torch")
    asked = parser.parse_args(arguments)
    if asked.write and asked.quick:
        parser.error("--write is for what was measured in full: leave out --quick")
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.disable_progress_bar()
    plan = QUICK if asked.quick else FULL
    rows: dict[str, list[Row]] = {}
    for group, row in measure(plan, asked.only):
        rows.setdefault(group, []).append(row)
        print(f"  measured: {row.work}, {row.model}", file=sys.stderr)
    print(as_text(row for some in rows.values() for row in some))
    if asked.write:
        before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
        DOCUMENT.write_text(document(rows, plan, before), encoding="utf-8")


if __name__ == "__main__":
    main()
