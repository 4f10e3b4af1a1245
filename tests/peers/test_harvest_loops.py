"""The loops that harvests are measured beside keep what a harvest keeps."""

import torch

from benchmarks import harvests, specimens
from benchmarks.specimens import Shape
from benchmarks.timing import Effort

TINY = Shape(layers=2, width=24, heads=3, vocab=64, batch=2, positions=8)


def test_every_tool_has_a_loop_that_keeps_the_same() -> None:
    with torch.no_grad():  # values are compared before anything is timed
        rows = list(harvests.rows(specimens.gpt2(TINY), Effort(seconds=0, least=1, warm_up=False)))
    assert [row.against for row in rows] == [
        "a loop that stops",
        "a loop that stops, use_cache=False",
        "a loop that does not stop",
        "TransformerLens, run_with_cache up to the layer",
        "nnsight, a trace that stops",
        "SAELens, ActivationsStore",
        "SAELens, CacheActivationsRunner",
    ]
