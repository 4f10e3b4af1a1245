"""Activation and path patching beside TransformerLens's own, on the same weights, in float64."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import transformer_lens.patching as theirs
from peers.twins import twins
from torch import Tensor

import lensbridge
from lensbridge import patching as ours

FAMILIES = ("GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM")
PUBLISHED = [name for name in dir(theirs) if name.startswith("get_act_patch_")]
SETTERS = [name for name in dir(theirs) if name.endswith("_patch_setter")]
CLEAN = torch.tensor([[9, 23, 41, 17, 60], [14, 52, 31, 33, 25]])
CORRUPTED = torch.tensor([[9, 8, 41, 44, 12], [71, 52, 30, 33, 66]])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small run slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def pair(name: str) -> tuple[Any, Any, Any, Any]:
    """Our model and theirs, and the clean cache of each."""
    native, classic = twins(name, torch.float64)
    model = lensbridge.load(native)
    return model, classic, model.run_with_cache(CLEAN)[1], classic.run_with_cache(CLEAN)[1]


def metric(logits: Tensor) -> Tensor:
    return (logits.softmax(-1)[:, :, 7] * torch.arange(1, 6)).sum(1).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_functions_give_the_same(name: str, family: str) -> None:
    model, classic, cache_, their_cache = pair(family)
    if name.endswith("resid_mid") and family == "GPTNeoXForCausalLM":
        pytest.skip("parallel attention and MLP: there is no residual between them")
    wanted = getattr(theirs, name)(classic, CORRUPTED, their_cache, metric)
    found = getattr(ours, name)(model, CORRUPTED, cache_, metric)
    assert found.shape == wanted.shape
    there = ~found.isnan()  # theirs are 0 where there is no such key/value head
    assert (wanted[~there] == 0).all()
    torch.testing.assert_close(found[there].to(wanted), wanted[there], rtol=1e-5, atol=1e-7)


def test_every_name_is_there_with_the_same_arguments() -> None:
    for name in (*PUBLISHED, *SETTERS, "generic_activation_patch", "make_df_from_ranges"):
        one, other = getattr(ours, name), getattr(theirs, name)
        if name in PUBLISHED and not name.endswith("every"):
            continue  # partials of theirs, called by position above
        wanted = list(inspect.signature(other).parameters)
        wanted = [one for one in wanted if one not in ("kwargs", "args")]
        assert list(inspect.signature(one).parameters)[: len(wanted)] == wanted, name


@pytest.mark.parametrize("name", SETTERS)
def test_setters_write_the_same_places(name: str) -> None:
    entries = 2 if "layer_pos_patch" in name else name.count("_pos") + name.count("_head") + 1
    entries = {"layer_head_dest_src_pos_pattern_patch_setter": 4}.get(name, entries)
    index = [0, 1, 2, 1][:entries]
    results = []
    for module in (ours, theirs):
        corrupted, clean = torch.zeros(2, 3, 4, 3), torch.ones(2, 3, 4, 3)
        results.append(getattr(module, name)(corrupted, index, clean))
    assert torch.equal(*results)


def test_the_frame_of_ranges_is_the_same() -> None:
    found = ours.make_df_from_ranges([2, 3, 2], ["layer", "pos", "head"])
    wanted = theirs.make_df_from_ranges([2, 3, 2], ["layer", "pos", "head"])
    assert found.equals(wanted)


def test_cells_of_a_frame_give_the_same() -> None:
    model, classic, cache_, their_cache = pair("GPT2LMHeadModel")
    cells = ours.make_df_from_ranges([2, 5], ["layer", "pos"]).iloc[[7, 2, 3]]
    found, frame = (
        ours.generic_activation_patch(
            model, CORRUPTED, cache_, metric, ours.layer_pos_patch_setter, "resid_pre",
            index_df=cells, return_index_df=True,
        )
    )  # fmt: skip
    wanted, _ = theirs.generic_activation_patch(
        classic, CORRUPTED, their_cache, metric, theirs.layer_pos_patch_setter, "resid_pre",
        index_df=cells, return_index_df=True,
    )  # fmt: skip
    torch.testing.assert_close(found.to(wanted), wanted, rtol=1e-5, atol=1e-7)
    assert frame.values.tolist() == cells.values.tolist()
