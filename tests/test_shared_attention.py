"""Zamba's shared attention, which feeds the mixers of several layers: its points call by call."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lensbridge_adapters.zamba import ZAMBA, ZAMBA2
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import AbsentPointError, ArchitectureMismatchError
from lensbridge.testing import CHECKS, Subject, run_check, tiny_model

IDS = torch.tensor([[5, 9, 17, 3, 11, 20], [8, 2, 30, 7, 12, 4]])
KINDS = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
DESCRIBED = {"zamba": ZAMBA, "zamba2": ZAMBA2}
FIELDS: dict[str, dict[str, Any]] = {
    "zamba": {},
    "zamba2": {"use_shared_attention_adapter": True, "use_mem_rope": True, "num_mem_blocks": 1},
}
SHARED = {"zamba": "shared_transf", "zamba2": "shared_transformer"}
EACH = pytest.mark.parametrize("name", list(DESCRIBED))


ONE = pytest.mark.parametrize("one", [False, True], ids=["tied", "one module"])


@cache
def opened(name: str, one: bool = False) -> LensModel:
    """A model whose layers have modules with tied weights each, or one module."""
    fields = {"num_hidden_layers": 4, "layers_block_type": KINDS, **FIELDS[name]}
    hf_model: Any = tiny_model(DESCRIBED[name], kernel="eager", **fields)
    if one:
        layers = hf_model.model.layers
        setattr(layers[3], SHARED[name], getattr(layers[1], SHARED[name]))
    return lensbridge.load(hf_model)


def outputs(model: LensModel, name: str) -> list[Any]:
    """The output projections of the attention of both layers, each module once."""
    layers = model.hf_model.model.layers
    found = [layers[i].get_submodule(SHARED[name]).self_attn.o_proj for i in (1, 3)]
    return list(dict.fromkeys(found))


@ONE
@EACH
def test_each_layer_has_the_values_of_its_own_call(
    name: str, one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(name, one)
    projections = outputs(model, name)
    assert len(projections) == (1 if one else 2)
    mixed: list[Tensor] = []
    patterns: list[Tensor] = []
    softmax = F.softmax

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        patterns.append(softmax(*args, **kwargs))
        return patterns[-1]

    handles = [
        module.register_forward_hook(lambda _, args, out: mixed.append(args[0]))
        for module in projections
    ]
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "softmax", noting)
        wanted = model.hf_model(IDS).logits
    for handle in handles:
        handle.remove()
    logits, found = model.run_with_cache(IDS)
    assert torch.equal(logits, wanted)
    for call, layer in enumerate((1, 3)):
        at = f"blocks.{layer}.attn.hook_"
        assert torch.equal(found[f"{at}z"].flatten(-2), mixed[call])
        assert torch.equal(found[f"{at}pattern"], patterns[call])
        mix = torch.einsum("bhqk,bkhd->bqhd", found[f"{at}pattern"], found[f"{at}v"])
        torch.testing.assert_close(found[f"{at}z"], mix)
    assert not torch.equal(mixed[0], mixed[1])


@ONE
@EACH
def test_an_edit_in_one_layer_stays_in_that_call(name: str, one: bool) -> None:
    model = opened(name, one)
    calls: list[int] = []

    def silence(module: Any, args: Any) -> Any:
        calls.append(1)
        return (args[0] * 0,) if len(calls) == 2 else None

    handles = [one.register_forward_pre_hook(silence) for one in outputs(model, name)]
    with torch.no_grad():
        wanted = model.hf_model(IDS).logits
    for handle in handles:
        handle.remove()
    edit = ("blocks.3.attn.hook_z", lambda value, hook: value * 0)
    assert torch.equal(model.run_with_hooks(IDS, fwd_hooks=[edit]), wanted)


def test_it_adds_nothing_to_the_stream() -> None:
    model = opened("zamba")
    with pytest.raises(AbsentPointError, match="feeds the mixer"):
        model.run_with_cache(IDS, names_filter="blocks.1.hook_attn_out")
    _, found = model.run_with_cache(IDS)
    residual, labels = found.decompose_resid(return_labels=True)
    assert not any("attn" in label for label in labels)
    last = found["blocks.3.hook_resid_post"]
    torch.testing.assert_close(residual.sum(0), last, rtol=1e-4, atol=1e-4)


def changed(**words: Any) -> Any:
    """Zamba with something else said of the mixers that attention feeds."""
    plain, fed = ZAMBA.block  # type: ignore[misc]
    assert fed.mixer is not None
    return replace(ZAMBA, block=(plain, replace(fed, mixer=replace(fed.mixer, **words))))


def test_attention_that_is_left_out_is_missed() -> None:
    check = next(one for one in CHECKS if one.name == "nothing is left out")
    for architecture, status in ((ZAMBA, "passed"), (changed(feeder=None), "failed")):
        subject = Subject(opened("zamba").hf_model, {"input_ids": IDS}, architecture)
        assert run_check(check, subject).status == status


def test_a_feeder_needs_a_mixer_that_is_fed_more() -> None:
    with pytest.raises(ArchitectureMismatchError, match="say fed_more=True"):
        lensbridge.load(opened("zamba").hf_model, architecture=changed(fed_more=False))
