"""What a sweep takes: cells in every form, metrics of every kind, and the memory that there is."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from described import of_class
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge import patching as P
from lensbridge.errors import InputError, NotCachedError
from lensbridge.interventions import Add, Scale, Zero
from lensbridge.patching import Cell
from lensbridge.sweeps import measuring, memory
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.batch import CellBatch
from lensbridge.sweeps.context import SweepContext
from lensbridge.sweeps.edits import Edits
from lensbridge.sweeps.progress_bar import ProgressBar

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = slice(None)
IDS, OTHER = tokens(2, 6), tokens(2, 6, seed=1)


def last(logits: Tensor) -> Tensor:
    return logits[:, -1, 3]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return lensbridge.load(build(Shape("gpt2", dtype=torch.float64)))


def test_cells_in_every_form_are_what_plain_hooks_do(model: LensModel) -> None:
    bare: Any = model.hf_model
    _, clean = model.run_with_cache(IDS)
    cells = [
        Cell("blocks.1.hook_resid_pre", (ALL, 2), clean),
        (("resid_pre", 1), (ALL, 2), clean),
        (("resid_pre", 1), (ALL, 2), clean["resid_pre", 1][:, 2]),
        Add(("resid_pre", 1), 0.5, positions=4),
        Scale(("mlp_out", 0), 2.0),
        Cell(("resid_pre", 1), (1, 3), clean, P.layer_pos_patch_setter),
        [("resid_pre", 1), (ALL, 2), clean["resid_pre", 1]],
        (("resid_pre", 1), (ALL, 2), clean["resid_pre", 1][:, 2].numpy()),
    ]
    found = model.sweep(OTHER, cells, last, reduce="none").values

    def patched(whole: Tensor) -> Tensor:
        whole = whole.clone()
        whole[:, 2] = clean["resid_pre", 1][:, 2]
        return whole

    def added(whole: Tensor) -> Tensor:
        return whole + 0.5 * (torch.arange(6) == 4)[:, None]

    def at_three(whole: Tensor) -> Tensor:
        whole = whole.clone()
        whole[:, 3] = clean["resid_pre", 1][:, 3]
        return whole

    block, mlp = Layer(bare, "gpt2", 1).block, Layer(bare, "gpt2", 0).mlp
    changes = [(block, "input", one) for one in (patched, patched, patched, added)]
    changes += [(mlp, "output", lambda whole: whole * 2), (block, "input", at_three)]
    changes += [(block, "input", patched)] * 2
    for got, change in zip(found, changes, strict=True):
        wanted = last(run_changing(bare, [change], OTHER))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (("z", 0), "is no cell"),
        ("z", "is no cell"),
        (Zero("z"), "A cell is of one point"),
        (Zero(("z", 0), positions=9), "position 9 is out of range"),
        ((("resid_pre", 0), (ALL, 9), 0.0), "does not fit it: .*begins with the batch axis"),
        ((("resid_pre", 0), (ALL, 2), "clean"), "has a str"),
        ((("resid_pre", 0), (ALL, 2), None), "has a NoneType"),
    ],
)
def test_what_is_no_cell(model: LensModel, cell: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        model.sweep(IDS, [cell], last, reduce="none")
    assert model.engine.is_idle


def test_a_source_lies_over_the_input_or_is_refused(model: LensModel) -> None:
    longer = torch.cat([IDS, IDS[:, :2]], dim=1)
    _, clean = model.run_with_cache(longer)
    with pytest.raises(InputError, match="which positions correspond"):
        model.sweep(IDS, [(("resid_pre", 1), (ALL, 2), clean)], last, reduce="none")
    _, little = model.run_with_cache(IDS, names_filter="hook_embed")
    with pytest.raises(NotCachedError, match="The clean cache lacks"):
        model.sweep(IDS, [(("resid_pre", 1), (ALL, 2), little)], last, reduce="none")


def test_a_metric_that_reads_elsewhere_in_some_cells_is_given_those_logits(
    model: LensModel,
) -> None:
    """In the unpatched run it reads the last position alone, so the others are left out."""
    _, clean = model.run_with_cache(IDS)
    bar = model(OTHER)[:, -1, 3].sum().item()  # type: ignore[index,union-attr]

    def turning(logits: Tensor) -> Tensor:
        return logits[0, -1, 5] if logits[:, -1, 3].sum().item() <= bar + 1e-9 else logits[0, 1, 5]

    given: Any = (model, OTHER, clean, turning)
    found = P.get_act_patch_resid_pre(*given, baseline=True)
    wanted = P.get_act_patch_resid_pre(*given, exact=True)
    torch.testing.assert_close(found.values, wanted)
    assert (wanted - found.baseline).abs().max() > 1e-3
    assert "reads other positions" in found.engine


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda logits: logits[0, 50, 1], "reads a place that the logits do not have"),
        (lambda logits: None, "gives a NoneType"),
        (lambda logits: "high", "gives a str"),
        (lambda logits: logits[0, -1], r"gives shape \(61,\)|gives shape"),
    ],
)
def test_metrics_that_measure_nothing(model: LensModel, metric: Any, told: str) -> None:
    _, clean = model.run_with_cache(IDS)
    with pytest.raises(InputError, match=told):
        P.get_act_patch_resid_pre(model, OTHER, clean, metric)
    assert model.engine.is_idle


def test_a_metric_that_writes_into_its_logits_spoils_no_other_cell(model: LensModel) -> None:
    _, clean = model.run_with_cache(IDS)

    def in_place(logits: Tensor) -> Tensor:
        logits -= logits.logsumexp(-1, keepdim=True)
        return logits[:, -1, 3].mean()

    def plain(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[:, -1, 3].mean()

    given = (model, OTHER, clean)
    wanted = P.get_act_patch_resid_pre(*given, plain)
    for metrics in ({"writes": in_place}, {"writes": in_place, "reads": plain}):
        found = P.get_act_patch_resid_pre(*given, metrics, baseline=True)
        assert found.engine == "batched"
        for name in metrics:
            torch.testing.assert_close(found[name].values, wanted)
        torch.testing.assert_close(found.baseline[0], plain(model(OTHER)))
    once = [False, True]

    def sometimes(logits: Tensor) -> Tensor:
        if once.pop() if once else True:
            return logits[0, -1, 3].clone()
        return in_place(logits)

    with pytest.raises(InputError, match="in some cells and in others not"):
        P.get_act_patch_resid_pre(*given, sometimes, exact=True)
    assert model.engine.is_idle


# --- memory ----------------------------------------------------------------------------------


def test_a_sweep_beyond_the_memory_is_refused_before_it_begins(
    model: LensModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clean = model.run_with_cache(IDS)
    ran: list[int] = []

    def metric(logits: Tensor) -> Tensor:
        ran.append(1)
        return logits.sum()

    for free, told in ((1000, "cells would take"), (20_000, "one patched run would take")):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        with pytest.raises(InputError, match=told):
            P.get_act_patch_resid_pre(model, OTHER, clean, metric)
    with pytest.raises(InputError, match="one run alone has 12 positions"):
        P.get_act_patch_resid_pre(model, OTHER, clean, metric, max_batch_tokens=11)
    assert not ran
    assert model.engine.is_idle


def test_batches_are_as_large_as_memory_allows(
    model: LensModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseRun.run(model, IDS, [])
    each = memory.position_bytes(base)
    for free, wanted in ((100 * each, 50), (10**12, 4096), (None, 4096)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert memory.batch_tokens(base, None) == wanted
    assert memory.batch_tokens(base, 77) == 77


def test_memory_of_this_machine() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.free_bytes(torch.device("meta")) is None


# --- what goes slowly ------------------------------------------------------------------------


def test_a_model_that_cannot_be_started_late_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    t5 = of_class("T5ForConditionalGeneration")
    given = {"input_ids": IDS, "decoder_input_ids": OTHER}
    cells = [Cell("decoder.1.hook_resid_pre", (ALL, 2), 0.0)]
    measuring._say.cache_clear()
    with caplog.at_level(logging.WARNING):
        results = [t5.sweep(given, cells, last, reduce="none") for _ in range(2)]
    assert len(caplog.records) == 1
    assert "an encoder-decoder cannot start at a layer" in caplog.text
    assert all("an encoder-decoder" in one.engine for one in results)
    caplog.clear()
    t5.sweep(given, cells, last, reduce="none", exact=True)
    assert not caplog.records


def test_values_that_the_key_value_cache_forgets_are_patched_in_whole_rows() -> None:
    """Latent attention keeps latents, and makes keys and values of them anew in every pass."""
    model = of_class("DeepseekV2ForCausalLM", dtype=torch.float64)
    _, clean = model.run_with_cache(IDS, names_filter="v")
    given: Any = (model, OTHER, clean, last)
    found = P.get_act_patch_attn_head_v_by_pos(*given, reduce="none", baseline=True)
    wanted = P.get_act_patch_attn_head_v_by_pos(*given, reduce="none", exact=True)
    torch.testing.assert_close(found.values, wanted.values)
    assert (wanted.values[1] - found.baseline).abs().max() > 1e-2
    assert found.engine == "batched"


def test_a_stream_of_several_rows_is_no_place_for_the_published_setters() -> None:
    model = of_class("Gemma3nForCausalLM")
    _, clean = model.run_with_cache(IDS)
    with pytest.raises(InputError, match="has the axes r b p m"):
        P.get_act_patch_resid_pre(model, OTHER, clean, last, reduce="none")


def test_a_sweep_shows_how_far_it_is(model: LensModel, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [Cell(("resid_pre", layer), (ALL, p), 0.5) for layer in range(2) for p in range(4)]
    seen: list[float] = []
    base = BaseRun.run(model, IDS, [f"blocks.{layer}.hook_resid_pre" for layer in range(2)])
    edits = [replace(cell, point=model.vocabulary.canonical(cell.point)) for cell in cells]
    named = [Edits.of(edit) for edit in edits]
    whole = SweepContext.of(base, None, [IDS.shape[1] - 1], named)
    with torch.no_grad():
        CellBatch(whole, named, seen.append).run()
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == 1
    model.sweep(IDS, cells, last, reduce="none", verbose=True)
    assert f"{len(cells)}/{len(cells)}" in capsys.readouterr().err
    meter = ProgressBar(10, shown=True)
    meter.under_way(8, 0.5)
    meter.done()  # one of those that were under way
    meter.close()
    assert "4/10" in capsys.readouterr().err.splitlines()[-1]
