"""What sweeps take: measured as torch allocates it, and held against what they say they take."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from benchmarks.memory import peak_allocated
from lensbridge import LensModel
from lensbridge.errors import InputError
from lensbridge.patching import Cell
from lensbridge.plans.footprint import Footprint
from lensbridge.sweeps import memory
from lensbridge.sweeps.base_run import BaseRun

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = slice(None)
IDS = tokens(1, 32)


def everywhere(logits: Tensor) -> Tensor:
    return logits.pow(2).mean()


def at_the_end(logits: Tensor) -> Tensor:
    return logits[:, -1, 3].mean()


def cells_of(model: LensModel, point: str) -> Iterator[Cell]:
    """As many as fill several batches, all from the first position on."""
    for layer in range(len(model.native.blocks)):
        yield from (Cell((point, layer), ALL, 0.01 * i) for i in range(20))


def test_a_footprint_is_what_the_profiler_counts() -> None:
    model = build(Shape("gpt2", layers=3))
    with torch.no_grad():
        with Footprint() as found:
            model(IDS)
        assert found.peak == pytest.approx(
            peak_allocated(partial(model, IDS)), rel=0.05
        )  # which rounds up


@pytest.mark.parametrize("measure", [everywhere, at_the_end])
@pytest.mark.parametrize("point", ["resid_pre", "pattern"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_batch_takes_no_more_than_it_was_made_for(family: str, point: str, measure: Any) -> None:
    model = lensbridge.load(build(Shape(family, layers=3)))
    each = memory.position_bytes(BaseRun.run(model, IDS, []))
    cells = list(cells_of(model, point))
    peaks = []
    for most in (160, 320):
        with Footprint() as found:
            result = model.sweep(IDS, cells, measure, max_batch_tokens=most)
        assert result.engine == "batched"
        peaks.append(found.peak)
    kept = 3 * sum(one.nbytes for one in BaseRun.run(model, IDS, [(point, 0)]).cache.values())
    assert peaks[0] < 160 * each + kept
    assert peaks[1] < 320 * each + kept
    assert peaks[0] < peaks[1]


WIDE = ["Gemma2ForCausalLM", "MixtralForCausalLM", "MambaForCausalLM", "FalconH1ForCausalLM"]


@pytest.mark.parametrize("name", WIDE)
def test_caps_experts_and_states_count(name: str) -> None:
    model = of_class(name)
    each = memory.position_bytes(BaseRun.run(model, IDS, []))
    with Footprint() as found:
        model.sweep(IDS, list(cells_of(model, "resid_pre")), everywhere, max_batch_tokens=256)
    assert 0.05 < found.peak / (256 * each) < 1


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "MambaForCausalLM"])
def test_batches_are_made_for_the_memory_that_is_free(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_class(name)
    free = 400 * memory.position_bytes(BaseRun.run(model, IDS, []))
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    cells = list(cells_of(model, "resid_pre"))
    with Footprint() as found:
        model.sweep(IDS, cells, everywhere)
    assert found.peak < free
    monkeypatch.setattr(memory, "free_bytes", lambda device: free // 50)
    with pytest.raises(InputError, match="does not fit into memory"):
        model.sweep(IDS, cells, everywhere)
    assert model.engine.is_idle
