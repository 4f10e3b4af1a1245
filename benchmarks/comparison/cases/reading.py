"""What is read, and that reading changes nothing."""

import torch

from benchmarks.comparison import oracle
from benchmarks.comparison.cases.bench import Bench, as_bare, case, noted
from benchmarks.comparison.families import HEADS, LAYERS
from benchmarks.comparison.outcomes import (
    Outcome,
    near,
)


@case("logits of a run without hooks are those of the bare model, bit for bit")
def idle(bench: Bench) -> Outcome:
    return as_bare(bench, bench.opened.logits(bench.ids))


def _read_all(bench: Bench) -> Outcome:
    points = [one for one in bench.opened.points() if one != "pattern"]
    places = [(point, layer) for layer in range(LAYERS) for point in points]
    logits, _ = bench.opened.read(bench.ids, places)
    return as_bare(bench, logits)


@case("logits while the stream and head outputs are read, bit for bit")
def reading(bench: Bench) -> Outcome:
    return _read_all(bench)


@case("the same in bfloat16")
def reading_in_half(bench: Bench) -> Outcome:
    bench.dtype = torch.bfloat16
    return _read_all(bench)


@case("logits while a pattern is read, bit for bit, on a model with sdpa attention")
def reading_patterns(bench: Bench) -> Outcome:
    logits, _ = bench.opened.read(bench.ids, [("pattern", 0)])
    return as_bare(bench, logits, notes=True)


@case("the stream before and after a layer is what the layer reads and gives")
def stream(bench: Bench) -> Outcome:
    _, (before, after) = bench.opened.read(bench.ids, [("resid_pre", 1), ("resid_post", 1)])
    path, bare = bench.family.path("block", 1), bench.bare()
    wanted = [oracle.read(bare, path, bench.ids, side) for side in ("input", "output")]
    return near(torch.stack([before, after]), torch.stack(wanted))


@case("a head's output z is what the output projection reads")
def head_outputs(bench: Bench) -> Outcome:
    _, (z,) = bench.opened.read(bench.ids, [("z", 1)])
    wanted = oracle.read(bench.bare(), bench.family.path("out", 1), bench.ids, "input")
    return near(z, wanted.unflatten(-1, (HEADS, -1)))


@case("a pattern is the one that eager attention gives, on a model with sdpa attention")
def patterns(bench: Bench) -> Outcome:
    _, (pattern,) = bench.opened.read(bench.ids, [("pattern", 1)])
    return noted(bench, near(pattern, oracle.eager_pattern(bench.family, bench.ids, 1)))
