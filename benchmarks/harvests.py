"""A harvest beside loops over the same rows: the same activations, run and written.

The first loop is written by hand and raises after the last needed layer, as a harvest stops there.
It is measured twice: as one writes it, and without the cache of keys and values, which a harvest
turns off. Further ones run the whole model, or are those of TransformerLens, nnsight and SAELens,
where these are installed.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.checks import require_close, require_equal
from benchmarks.harvest_loops import Dataset, Loop, Peers, in_folder
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Work, interleave
from lensbridge import Harvest, Rows

BATCHES, SHARD = 4, 2
"""Batches of one harvest, and of a shard."""

OURS = "lensbridge"
STOPS, STRICT = "a loop that stops", "a loop that stops, use_cache=False"
BUDGET = 1 / 0.98


def rows(one: Specimen, effort: Effort) -> Iterator[Row]:
    """The stream after the middle layer, of some batches.

    Half of the time goes to the two loops with a budget, and half to all others.
    """
    batch, positions = one.ids.shape
    ids = torch.randint(3, one.hf.config.vocab_size, (BATCHES * batch, positions))
    layers = len(one.hf.transformer.h)
    layer = min(layers // 2, layers - 2)  # behind the last one the whole model has its norm
    data = Dataset(one.hf, ids, batch, SHARD, layer)
    spec = Harvest(
        one.lens,
        ids,
        [data.point],
        rows=Rows(positions, "pad"),
        batch=batch,
        shard_tokens=SHARD * batch * positions,
    )
    ours: Mapping[str, Work] = {OURS: in_folder(spec.run)}
    loops = {
        STOPS: data.loop(data.stopped),
        STRICT: data.loop(data.bare),
        "a loop that does not stop": data.loop(data.whole),
        **dict(Peers(data).loops()),
    }
    _check(spec, loops, data)
    work = f"harvest layer {data.layer}, {BATCHES} batches of {batch} x {positions}"
    for names, budget in (((STOPS, STRICT), BUDGET), (tuple(loops)[2:], None)):
        others = {name: in_folder(loops[name]) for name in names}
        samples = interleave({**ours, **others}, effort)
        for name in names:
            yield Row(work, one.name, name, samples.ratio(OURS, name), budget)


def _check(spec: Harvest, loops: Mapping[str, Loop], data: Dataset) -> None:
    """Require that all keep the same; those on the bare model, bit by bit."""
    with tempfile.TemporaryDirectory() as folder:
        spec.run(Path(folder) / "ours")
        kept = load_file(Path(folder) / "ours" / "shard-000000.safetensors")[data.point]
    for name, loop in loops.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = loop(Path(folder))
            if name.startswith("a loop"):
                require_equal(kept, theirs, name)
            require_close(kept, theirs, name)
