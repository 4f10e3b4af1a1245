"""FSDP2 in other ways: adapters, layers of their own kind, ignored parameters, sharded later."""

from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.models import double, ids, whole
from distributed.ranks import on_ranks
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import lensbridge
from lensbridge.errors import InputError, UnsupportedArchitectureError

pytestmark = pytest.mark.ranks


def sharded(model: Any, base: Any, **options: Any) -> Any:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in base.transformer.h:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def hold_equal(model: Any, wanted: Any, exactly: bool = True) -> None:
    """Weights and activations are those of the whole model, before a run and after it."""
    for _ in range(2):
        for name in wanted.weight_names:
            found, expected = model.weight(name), wanted.weight(name)
            assert found.dtype == expected.dtype, name
            same = torch.equal if exactly else torch.allclose
            assert same(found, expected), name
        with torch.no_grad():
            logits, cache = model.run_with_cache(ids())
            expected, others = wanted.run_with_cache(ids())
        assert torch.equal(logits, expected)
        for name in others:
            assert torch.equal(cache[name], others[name]), name


def adapted(model: nn.Module) -> Any:
    torch.manual_seed(1)
    lora = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **lora)).eval()


@on_ranks(2)
def test_adapters() -> None:
    model = adapted(whole())
    lens = lensbridge.load(sharded(model, model.get_base_model()))
    wanted = lensbridge.load(adapted(whole()))
    assert wanted.weight_state("blocks.0.attn.W_Q") == "adapted"
    hold_equal(lens, wanted, exactly=False)


class Squashed(nn.Linear):
    """A layer that does not use its weight as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.tanh(), self.bias)


def squashed(model: Any) -> Any:
    for layer in model.transformer.h:
        old = layer.mlp.c_fc
        new = Squashed(old.nx, old.nf)
        with torch.no_grad():
            new.weight.copy_(old.weight.T)
            new.bias.copy_(old.bias)
        layer.mlp.c_fc = new
    return model


@on_ranks(2)
def test_a_layer_that_computes_something_else_with_its_weight() -> None:
    wanted = lensbridge.load(squashed(whole()), derive=False)
    assert wanted.weight_state("blocks.0.mlp.W_in") == "opaque"
    model = squashed(whole())
    sharded(model, model)
    hold_equal(lensbridge.load(model, derive=False), wanted, exactly=False)
    with pytest.raises(UnsupportedArchitectureError, match=r"Squashed.*fully_shard.*afterwards"):
        lensbridge.load(model)


@on_ranks(2)
def test_sharded_after_loading() -> None:
    model, wanted = lensbridge.load(whole()), lensbridge.load(whole())
    assert model.weight_state("blocks.0.attn.W_Q") == "plain"
    sharded(model.hf_model, model.hf_model)
    assert model.weight_state("blocks.0.attn.W_Q") == "sharded"
    hold_equal(model, wanted)


@on_ranks(2)
def test_parameters_that_are_left_out() -> None:
    native = whole()
    kept = set(native.transformer.h[0].parameters())
    for layer in list(native.transformer.h)[1:]:
        fully_shard(layer)
    model = lensbridge.load(fully_shard(native, ignored_params=kept))
    assert model.weight_state("blocks.0.attn.W_Q") == "plain"
    assert model.weight_state("blocks.1.attn.W_Q") == "sharded"
    hold_equal(model, lensbridge.load(whole()))
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0.0
    assert not native.transformer.h[0].attn.c_proj.weight[6:12].any()


@on_ranks(2)
def test_modules_in_one_group_and_parameters_on_the_cpu() -> None:
    native = whole()
    fully_shard([native.transformer.wpe, native.transformer.h[0]])
    fully_shard([native.transformer.h[1], native.transformer.ln_f])
    model = lensbridge.load(fully_shard(native, offload_policy=CPUOffloadPolicy(pin_memory=False)))
    hold_equal(model, lensbridge.load(whole()))


@pytest.mark.parametrize("edit", [False, True])
@on_ranks(2)
def test_readers_and_editors_see_the_same_precision(edit: bool) -> None:
    """Where layers give out another precision than they compute in."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    native = whole()
    for layer in native.transformer.h:
        fully_shard(layer, mp_policy=policy)
    model = lensbridge.load(fully_shard(native))
    seen: list[torch.dtype] = []

    def note(value: Tensor, hook: Any) -> Tensor:
        seen.append(value.dtype)
        return value.clone()

    with torch.no_grad():
        logits, cache = model.run_with_cache(ids(), "resid_post")
        same = model.run_with_hooks(ids(), fwd_hooks=[("resid_post", note)])
        assert torch.equal(same, logits)
        twice = model.run_with_hooks(ids(), fwd_hooks=[("blocks.0.hook_resid_post", double)])
    assert not torch.equal(twice, logits)
    assert seen == [cache["resid_post", 0].dtype] * 2


@on_ranks(2)
def test_texts_of_different_lengths() -> None:
    """transformers runs a rank that has its text on until the others have theirs."""
    native = whole()
    model, wanted = lensbridge.load(sharded(native, native)), lensbridge.load(whole())
    length = 2 + 3 * distributed.get_rank()
    options: dict[str, Any] = {"max_new_tokens": length, "do_sample": False, "verbose": False}
    with pytest.raises(InputError, match=r"fully_shard.*run_with_cache on what came"):
        model.generate(ids(), return_cache=True, **options)
    for edits in ([], [("blocks.0.hook_resid_post", double)]):
        with wanted.hooks(edits) if edits else torch.no_grad():
            text = wanted.generate(ids(), **options)
        with model.hooks(edits) if edits else torch.no_grad():
            found = model.generate(ids(), **options)
        assert found.shape[1] == ids().shape[1] + length
        assert torch.equal(found, text)
        _, cache = model.run_with_cache(found, "resid_post")
        _, others = wanted.run_with_cache(text, "resid_post")
        assert torch.equal(cache["resid_post", 1], others["resid_post", 1])


@on_ranks(2)
def test_plans_are_refused_and_weights_described() -> None:
    native = whole()
    model = lensbridge.load(sharded(native, native))
    with pytest.raises(InputError, match=r"fully_shard.*before it is sharded"):
        model.plan((2, 5), "resid_post")
    described = str(model.describe_weights())
    assert "fully_shard" in described
    assert "sharded" in described
