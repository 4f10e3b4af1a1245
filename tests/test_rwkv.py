"""RWKV: neurons that are squared, fed with two positions, and gated together; a first layer in
which the embeddings are normed; a stream that is halved after some layers.
"""

from functools import cache
from typing import Any

import pytest
import torch
from lensbridge_adapters.rwkv import RWKV
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import AbsentPointError, ProcessingError
from lensbridge.sweeps.packing import mlp_of
from lensbridge.testing import tiny_model

IDS = torch.tensor([[5, 9, 17, 3, 11, 20], [8, 2, 30, 7, 12, 4]])
LAYER = "rwkv.blocks.1.feed_forward"
AT = "blocks.1."


@cache
def model() -> LensModel:
    return lensbridge.load(tiny_model(RWKV))


def call_of(path: str) -> tuple[Tensor, Any]:
    """What a module of the bare model reads and returns."""
    found: list[Any] = []
    module = model().hf_model.get_submodule(path)
    handle = module.register_forward_hook(lambda _, args, out: found.append((args[0], out)))
    try:
        with torch.no_grad():
            model().hf_model(IDS)
    finally:
        handle.remove()
    [call] = found
    return call


def test_neurons_are_what_the_projections_give_and_read() -> None:
    _, found = model().run_with_cache(IDS)
    assert torch.equal(found[f"{AT}mlp.hook_pre"], call_of(f"{LAYER}.key")[1])
    assert torch.equal(found[f"{AT}mlp.hook_post"], call_of(f"{LAYER}.value")[0])
    given, (added, _) = call_of(LAYER)
    assert torch.equal(found[f"{AT}ln2.hook_out"], given)
    assert torch.equal(found[f"{AT}hook_mlp_out"], added)


def test_an_ablated_neuron_is_one_without_its_column() -> None:
    weight = model().hf_model.get_submodule(f"{LAYER}.value").weight
    with torch.no_grad():
        kept = weight[:, 3].clone()
        weight[:, 3] = 0
        wanted = model().hf_model(IDS).logits
        weight[:, 3] = kept

    def ablate(value: Tensor, hook: Any) -> None:
        value[..., 3] = 0

    found = model().run_with_hooks(IDS, fwd_hooks=[(f"{AT}mlp.hook_post", ablate)])
    torch.testing.assert_close(found, wanted)


def test_an_edit_before_the_activation_is_squared() -> None:
    name = f"{AT}mlp.hook_post"
    edit = (f"{AT}mlp.hook_pre", lambda value, hook: torch.full_like(value, 3.0))
    with model().hooks(fwd_hooks=[edit]):
        _, found = model().run_with_cache(IDS, names_filter=name)
    assert torch.equal(found[name], torch.full_like(found[name], 9.0))


def test_what_the_gate_and_the_position_before_forbid_is_refused() -> None:
    with pytest.raises(ProcessingError, match=r"blocks\.1\.ln2"):
        model().process_weights_(fold_ln=True)
    assert mlp_of(model().native.blocks[1]) is None
    _, cache_ = model().run_with_cache(IDS)
    with pytest.raises(AbsentPointError, match=r"a gate multiplies|not described"):
        cache_.stack_neuron_results(layer=2)


def test_the_stream_begins_after_the_norm_in_the_first_layer() -> None:
    normed = call_of("rwkv.blocks.0.pre_ln")[1]
    _, cache = model().run_with_cache(IDS)
    assert torch.equal(cache["blocks.0.hook_resid_pre"], normed)
    assert torch.equal(cache["ln_embed.hook_out"], normed)
    assert torch.equal(cache["blocks.0.ln1.hook_out"], call_of("rwkv.blocks.0.ln1")[1])
    assert torch.equal(model().blocks[0](normed), call_of("rwkv.blocks.0")[1][0])


def test_an_edit_of_the_stream_reaches_the_skip_connection_too() -> None:
    start = call_of("rwkv.blocks.0.pre_ln")[1]
    change = torch.randn(start.shape)
    norm = model().hf_model.get_submodule("rwkv.blocks.0.pre_ln")
    handle = norm.register_forward_hook(lambda _, args, out: out + change)
    with torch.no_grad():
        wanted = model().hf_model(IDS).logits
    handle.remove()
    edit = ("blocks.0.hook_resid_pre", lambda value, hook: value + change)
    assert torch.equal(model().run_with_hooks(IDS, fwd_hooks=[edit]), wanted)
    assert torch.equal(model()(start + change, start_at_layer=0), wanted)


def test_the_stream_is_halved_after_every_second_layer() -> None:
    _, cache = model().run_with_cache(IDS)
    assert model().hf_model.config.rescale_every == 2
    assert torch.equal(cache["blocks.1.hook_resid_pre"], cache["blocks.0.hook_resid_post"])
    assert torch.equal(cache["blocks.2.hook_resid_pre"], cache["blocks.1.hook_resid_post"] / 2)
    terms, labels = cache.decompose_resid(return_labels=True)
    torch.testing.assert_close(terms.sum(0), cache["blocks.2.hook_resid_post"])
    assert labels[-3:] == ["2_between", "2_mixer_out", "2_mlp_out"]
    early = cache.decompose_resid(layer=2)
    torch.testing.assert_close(early.sum(0), cache["blocks.2.hook_resid_pre"])
