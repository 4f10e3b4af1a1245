"""Training mode: what a branch adds is read and edited after the block's own dropout.

The oracle is the bare model with the same seed: its stream before and after each branch.
"""

from typing import Any

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import HookError
from lensbridge.inputs.random import inputs_for

RATE = 0.3
SUMS = [
    "OPTForCausalLM",
    "BioGptForCausalLM",
    "XGLMForCausalLM",
    "BloomForCausalLM",
    "DbrxForCausalLM",
    "MBartForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "BigBirdPegasusForCausalLM",
    "WhisperForCausalLM",
    "ViTForImageClassification",
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "StableLmForCausalLM",
]
PARALLEL = ["PhiForCausalLM", "GPTNeoXForCausalLM", "CodeGenForCausalLM"]
NORMED = ["BartForConditionalGeneration", "MarianMTModel", "BertForMaskedLM"]


def dropping(name: str) -> nn.Module:
    """A tiny model in training mode, every dropout of which drops, but not whole layers."""
    description = next(one for one in lensbridge_architectures() if name in one.classes)
    hf: Any = tiny_model(description, name)
    for holder in [*hf.modules(), *{id(c): c for c in _configs(hf)}.values()]:
        for key, value in list(vars(holder).items()):
            if isinstance(value, float) and "drop" in key and "layer" not in key:
                setattr(holder, key, RATE)
        if isinstance(holder, nn.Dropout):
            holder.p = RATE
    return hf.train()


def _configs(hf: nn.Module) -> list[Any]:
    found = [getattr(module, "config", None) for module in hf.modules()]
    return [one for one in found if one is not None]


def run(hf: nn.Module, action: Any) -> Any:
    """An action on the model's input, with a fixed seed."""
    (_, first), *rest = inputs_for(hf).items()
    torch.manual_seed(7)
    with torch.no_grad():
        return action(first, dict(rest))


def points(model: lensbridge.LensModel) -> list[str]:
    last = ("resid_pre", "resid_mid", "resid_mid_cross", "resid_post")
    last += ("attn_out", "cross_attn_out", "mlp_out")
    return [n for n in model.hook_names if n.rpartition("hook_")[2] in last and "mixer" not in n]


def branches(cache: Any, at: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The stream before a branch, what it adds, and the stream after it."""
    stream = cache[f"{at}hook_resid_pre"]
    found = []
    for out, after in (
        ("hook_attn_out", "hook_resid_mid"),
        ("hook_cross_attn_out", "hook_resid_mid_cross"),
        ("hook_mlp_out", "hook_resid_post"),
    ):
        if f"{at}{out}" in cache:
            found.append((stream, cache[f"{at}{out}"], cache[f"{at}{after}"]))
            stream = cache[f"{at}{after}"]
    return found


def prefixes(model: lensbridge.LensModel) -> list[str]:
    stacks = model.native.stacks
    return [f"{stack.prefix}.{i}." for stack in stacks for i in range(len(stack.blocks))]


@pytest.mark.parametrize("name", SUMS)
def test_what_a_branch_adds_is_what_is_added(name: str) -> None:
    hf = dropping(name)
    model = lensbridge.load(hf)
    bare = run(hf, lambda first, more: hf(first, **more).logits)
    logits, cache = run(hf, lambda first, more: model.run_with_cache(first, points(model), **more))
    assert torch.equal(logits, bare)
    dropped = False
    for at in prefixes(model):
        for before, added, after in branches(cache, at):
            torch.testing.assert_close(before + added, after, rtol=1e-5, atol=1e-5)
            dropped = dropped or bool((added == 0).float().mean() > 0.1)
    assert dropped


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_branches_are_what_is_added(name: str) -> None:
    hf = dropping(name)
    model = lensbridge.load(hf)
    bare = run(hf, lambda first, more: hf(first, **more).logits)
    logits, cache = run(hf, lambda first, more: model.run_with_cache(first, points(model), **more))
    assert torch.equal(logits, bare)
    for at in prefixes(model):
        read = [cache[f"{at}hook_{one}"] for one in ("resid_pre", "attn_out", "mlp_out")]
        torch.testing.assert_close(sum(read), cache[f"{at}hook_resid_post"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMED)
def test_norms_of_sums_get_what_is_added(name: str) -> None:
    hf = dropping(name)
    model = lensbridge.load(hf)
    bare = run(hf, lambda first, more: hf(first, **more).logits)
    logits, cache = run(hf, lambda first, more: model.run_with_cache(first, points(model), **more))
    assert torch.equal(logits, bare)
    blocks = [block for stack in model.native.stacks for block in stack.blocks]
    for at, block in zip(prefixes(model), blocks, strict=True):
        norms = [block.norms[slot] for slot in ("ln1", "ln_cross", "ln2") if slot in block.norms]
        for (before, added, after), norm in zip(branches(cache, at), norms, strict=True):
            torch.testing.assert_close(norm.module(before + added), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["OPTForCausalLM", "BloomForCausalLM", "BartForCausalLM"])
def test_edits_replace_what_is_added(name: str) -> None:
    hf = dropping(name)
    model = lensbridge.load(hf)
    point, after = "blocks.0.hook_attn_out", "blocks.0.hook_resid_mid"
    same = run(
        hf, lambda first, more: model.run_with_hooks(first, [(point, lambda x, hook: x)], **more)
    )
    assert torch.equal(same, run(hf, lambda first, more: hf(first, **more).logits))
    value: list[Tensor] = []

    def double(x: Tensor, hook: Any) -> Tensor:
        value.append(x * 2)
        return value[-1]

    def edited(first: Tensor, more: dict[str, Any]) -> Any:
        with model.hooks([(point, double)]):
            return model.run_with_cache(first, ["blocks.0.hook_resid_pre", point, after], **more)[1]

    cache = run(hf, edited)
    assert torch.equal(cache[point], value[0])
    total = cache["blocks.0.hook_resid_pre"] + value[0]
    block = model.native.blocks[0]
    wanted = block.norms["ln1"].module(total) if block.residual == "post_norm" else total
    torch.testing.assert_close(cache[after], wanted, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_what_is_added() -> None:
    hf = dropping("OPTForCausalLM")
    model = lensbridge.load(hf)
    names = ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]
    torch.manual_seed(7)
    _, cache = model.run_with_cache(
        inputs_for(hf)["input_ids"], names, return_type="loss", incl_bwd=True
    )
    assert torch.equal(*(cache[f"{name}_grad"] for name in names))


def test_switching_modes_under_hooks_is_refused() -> None:
    hf = dropping("OPTForCausalLM").eval()
    model, ids = lensbridge.load(hf), inputs_for(hf)["input_ids"]
    for act in (lambda x, hook: x, lambda x, hook: None):
        with model.hooks([("blocks.0.hook_attn_out", act)]):
            model(ids)
            model.train()
            with pytest.raises(HookError, match=r"after model\.train\(\)"):
                model(ids)
            model.eval()
            model(ids)
    model.train()
    with model.hooks([("blocks.0.hook_attn_out", lambda x, hook: x * 2)]):
        edited = run(hf, lambda first, more: model(first, **more))
        model.eval()
        assert torch.equal(model(ids), model(ids))
    assert not torch.equal(edited, run(hf, lambda first, more: hf(first, **more).logits))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


@pytest.mark.parametrize("name", ["GPTNeoXJapaneseForCausalLM", "FalconForCausalLM"])
def test_a_dropped_sum_is_refused(name: str) -> None:
    hf = dropping(name)
    model, ids = lensbridge.load(hf), inputs_for(hf)["input_ids"]
    told = r"before one dropout of their sum.*model\.eval\(\).*hidden_dropout=0\.\d"
    with pytest.raises(HookError, match=told):
        model.run_with_cache(ids, "attn_out")
    with pytest.raises(HookError, match=r"model\.eval\(\)"):
        model.run_with_hooks(ids, [("blocks.1.hook_attn_out", lambda x, hook: x)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    model.run_with_cache(ids, "resid_post")
    model.eval()
    model.run_with_cache(ids, "attn_out")


def test_training_mode_without_dropout_is_like_eval() -> None:
    for name in ("OPTForCausalLM", "FalconForCausalLM", "GPTNeoXJapaneseForCausalLM"):
        description = next(one for one in lensbridge_architectures() if name in one.classes)
        hf: Any = tiny_model(description, name)
        for holder in [*hf.modules(), *_configs(hf)]:
            for key, value in list(vars(holder).items()):
                if isinstance(value, float) and ("drop" in key or key == "p"):
                    setattr(holder, key, 0.0)
        model, ids = lensbridge.load(hf), inputs_for(hf)["input_ids"]
        with torch.no_grad():
            _, still = model.eval().run_with_cache(ids, points(model))
            _, moving = model.train().run_with_cache(ids, points(model))
        for point in points(model):
            assert torch.equal(still[point], moving[point]), point
