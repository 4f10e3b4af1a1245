"""Tensor parallelism: on every rank a lens shows and edits the model that one process has whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.ranks import on_ranks
from distributed.tensor_parallel import close, lenses, tokens, whole_and_split
from torch import Tensor

import lensbridge
from lensbridge import patching
from lensbridge.causal import attribution_patch
from lensbridge.sweeps import memory

pytestmark = pytest.mark.ranks

FAMILIES = [
    ("llama", "sdpa"),
    ("llama", "eager"),
    ("qwen2", "sdpa"),
    ("qwen3", "sdpa"),
    ("gpt_neox", "eager"),
    ("gemma2", "eager"),
    ("phi3", "sdpa"),
    ("olmo2", "sdpa"),
]
WEIGHTS = "W_E W_U W_Q W_K W_V W_O W_in W_out W_gate b_Q b_K b_V b_O b_in b_out b_gate"


def scaled(value: Tensor, hook: Any) -> None:
    """An edit of every entry, another for each."""
    factor = 1 + torch.arange(value.numel()).sin().reshape(value.shape) / 2
    value.copy_(torch.where(value.isinf(), value, value * factor))


def of_parameters(model: Any) -> dict[str, Tensor]:
    """The gradient of each parameter as it is on one rank."""
    grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, grad in one.items():
        assert torch.allclose(grad, other[name], atol=1e-4, rtol=1e-3), name


# --- values --------------------------------------------------------------------------------------


def assert_whole(whole: Any, split: Any) -> None:
    """Sizes, points and weights are those of the model on one rank."""
    assert split.cfg.to_dict() == {**whole.cfg.to_dict(), "model_name": split.cfg.model_name}
    logits, cache = whole.run_with_cache(tokens())
    here, found = split.run_with_cache(tokens())
    assert close(logits, here)
    assert list(cache) == list(found)
    for name in cache:
        assert close(cache[name], found[name]), name
    for name in WEIGHTS.split():
        if hasattr(whole, name):
            assert torch.equal(getattr(whole, name), getattr(split, name)), name


@pytest.mark.parametrize(("family", "kernel"), FAMILIES)
@on_ranks(2)
def test_every_point_and_weight_of_a_family_is_whole(family: str, kernel: str) -> None:
    assert_whole(*lenses(family, attn_implementation=kernel))


@on_ranks(2)
def test_ranks_may_have_different_numbers_of_neurons() -> None:
    whole, split = lenses("llama", intermediate_size=49)
    assert_whole(whole, split)
    name = "blocks.1.mlp.hook_post"
    edits = [(name, scaled)]
    one, other = (model.run_with_hooks(tokens(), fwd_hooks=edits) for model in (whole, split))
    assert close(one, other)


@on_ranks(4)
def test_four_ranks_have_a_head_each() -> None:
    whole, split = lenses("qwen3", num_key_value_heads=4, intermediate_size=49)
    assert_whole(whole, split)
    edits = [(f"blocks.0.{name}", scaled) for name in ("hook_v_input", "attn.hook_pattern")]
    one, other = (model.run_with_hooks(tokens(), fwd_hooks=edits) for model in (whole, split))
    assert close(one, other)


@on_ranks(2)
def test_experts_that_every_rank_has_whole_are_read() -> None:
    at = "model.layers.*.mlp.experts"
    plan = dict.fromkeys([at, f"{at}.gate_up_proj", f"{at}.down_proj"], "replicate")
    whole, split = lenses("mixtral", plan)
    assert split.native.sharding is not None
    assert_whole(whole, split)


# --- edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kernel"), FAMILIES)
@on_ranks(2)
def test_an_edit_at_any_point_does_what_it_does_on_one_rank(family: str, kernel: str) -> None:
    whole, split = lenses(family, attn_implementation=kernel)
    unedited = whole(tokens())
    with torch.no_grad():
        for name in whole.hook_names:
            edits = [(name, scaled)]
            one = whole.run_with_hooks(tokens(), fwd_hooks=edits)
            assert close(one, split.run_with_hooks(tokens(), fwd_hooks=edits)), name
            assert not torch.equal(one, unedited), name


@pytest.mark.parametrize("neuron", [5, 40])
@on_ranks(2)
def test_an_edit_of_a_neuron_edits_that_neuron(neuron: int) -> None:
    hf_model, split = whole_and_split("llama")
    lens = lensbridge.load(split)

    def raise_(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        neurons = args[0].clone()
        neurons[..., neuron] = 3.0
        return (neurons,)

    def raise_it(neurons: Tensor, hook: Any) -> None:
        neurons[..., neuron] = 3.0

    hf_model.model.layers[0].mlp.down_proj.register_forward_pre_hook(raise_)
    edits = [("blocks.0.mlp.hook_post", raise_it)]
    assert close(hf_model(tokens()).logits, lens.run_with_hooks(tokens(), fwd_hooks=edits))


@on_ranks(2)
def test_hooks_act_in_runs_of_the_huggingface_model_itself() -> None:
    whole, split = lenses("llama")
    edits = [("blocks.0.attn.hook_q", scaled), ("blocks.1.mlp.hook_pre", scaled)]
    found = []
    for model in (whole, split):
        with model.hooks(edits):
            found.append(model.hf_model(tokens()).logits)
        model.add_hook("blocks.1.attn.hook_rot_q", scaled, is_permanent=True)
        found.append(model.hf_model(tokens()).logits)
        model.reset_hooks(including_permanent=True)
        found.append(model.hf_model(tokens()).logits)
    assert all(close(one, other) for one, other in zip(found[:3], found[3:], strict=True))
    assert not close(found[0], found[1])
    assert not close(found[1], found[2])


@on_ranks(2)
def test_a_point_says_where_it_is_gathered() -> None:
    _, split = lenses("llama")
    for name in ("mlp.hook_post", "attn.hook_q", "attn.hook_pattern", "attn.hook_result"):
        assert "gathered from 2 ranks" in str(split.explain(f"blocks.0.{name}")), name
    assert "gathered" not in str(split.explain("blocks.0.hook_resid_pre"))


@on_ranks(2)
def test_text_is_generated_under_edits() -> None:
    whole, split = lenses("llama")

    def double(value: Tensor, hook: Any) -> None:
        value[:, :, 1] *= 2

    names = ("hook_z", "hook_rot_k", "hook_v")
    edits = [(f"blocks.0.attn.{name}", double) for name in names]

    def text(model: Any) -> Tensor:
        with model.hooks(edits):
            return model.generate(tokens(), max_new_tokens=8, do_sample=False)

    assert torch.equal(text(whole), text(split))
    assert not torch.equal(text(split), split.generate(tokens(), max_new_tokens=8, do_sample=False))


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kernel"), [("llama", "sdpa"), ("gpt_neox", "eager")])
@on_ranks(2)
def test_gradients_at_any_point_and_of_any_weight_are_whole(family: str, kernel: str) -> None:
    whole, split = lenses(family, attn_implementation=kernel)

    def gradients(model: Any, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        found: list[Tensor] = []
        model.zero_grad()
        hooks = [(name, lambda grad, hook: found.append(grad.clone()))]
        logits = model.run_with_hooks(tokens(), bwd_hooks=hooks)
        logits.log_softmax(-1)[..., 3].sum().backward()
        return found[0], of_parameters(model)

    for name in whole.hook_names:
        (one, of_one), (other, of_other) = gradients(whole, name), gradients(split, name)
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-3), name
        assert_same_gradients(of_one, of_other)


@pytest.mark.parametrize("name", ["mlp.hook_post", "attn.hook_q", "attn.hook_pattern"])
@on_ranks(2)
def test_gradients_of_what_was_read_go_back_into_the_weights(name: str) -> None:
    def gradients(model: Any) -> dict[str, Tensor]:
        _, cache = model.run_with_cache(tokens(), names_filter=f"blocks.1.{name}", detach=False)
        value = cache[f"blocks.1.{name}"].pow(2)
        (value * torch.arange(value.numel()).sin().view_as(value)).sum().backward()
        return of_parameters(model)

    whole, split = lenses("llama")
    assert_same_gradients(gradients(whole), gradients(split))


@pytest.mark.parametrize("name", ["mlp.hook_post", "mlp.hook_pre"])
@on_ranks(2)
def test_a_value_that_was_read_has_the_gradient_of_the_logits(name: str) -> None:
    def gradient(model: Any) -> Tensor:
        logits, cache = model.run_with_cache(tokens(), f"blocks.0.{name}", detach=False)
        (found,) = torch.autograd.grad(difference(logits), cache[f"blocks.0.{name}"])
        return found

    whole, split = lenses("llama")
    assert close(gradient(whole), gradient(split))


# --- tools ---------------------------------------------------------------------------------------


def difference(logits: Tensor) -> Tensor:
    return (logits[:, -1, 3] - logits[:, -1, 4]).mean()


def patched_heads(model: Any) -> Tensor:
    _, cache = model.run_with_cache(tokens())
    other = tokens().mul(7).remainder(64)
    return patching.get_act_patch_attn_head_out_all_pos(model, other, cache, difference)


def patched_residual(model: Any) -> Tensor:
    _, cache = model.run_with_cache(tokens())
    other = tokens().mul(7).remainder(64)
    return patching.get_act_patch_resid_pre(model, other, cache, difference)


def attributed(model: Any) -> Tensor:
    names = [f"blocks.1.{name}" for name in ("hook_q_input", "attn.hook_k", "mlp.hook_post")]
    found = model.activation_x_gradient(tokens(), names, of=difference)
    return torch.cat([found[name].flatten() for name in names])


def attribution_patched(model: Any) -> Tensor:
    other = tokens().mul(7).remainder(64)
    return torch.as_tensor(attribution_patch(model, tokens(), other, difference).values)


def swept(model: Any) -> Tensor:
    """Cells at heads and at a neuron, batched."""
    cells = [("blocks.0.attn.hook_z", (slice(None), 2, head), 0.0) for head in range(4)]
    cells += [("blocks.1.mlp.hook_post", (slice(None), position, 40), 2.0) for position in (1, 4)]
    return torch.as_tensor(model.sweep(tokens(), cells, difference, max_batch_tokens=48).values)


def read_out(model: Any) -> Tensor:
    found = model.logit_lens(tokens()).values
    assert found.isfinite().any()
    return found


def from_a_layer(model: Any) -> Tensor:
    residual = model(tokens(), stop_at_layer=1)
    return model(residual, start_at_layer=1)


TOOLS: dict[str, Callable[[Any], Tensor]] = {
    "patched heads": patched_heads,
    "patched residual": patched_residual,
    "swept": swept,
    "attributed": attributed,
    "attribution patched": attribution_patched,
    "read out": read_out,
    "from a layer": from_a_layer,
}


@pytest.mark.parametrize("tool", TOOLS)
@on_ranks(2)
def test_tools_give_what_they_give_on_one_rank(tool: str) -> None:
    whole, split = lenses("qwen3")
    one, other = (torch.as_tensor(TOOLS[tool](model)) for model in (whole, split))
    assert one.shape == other.shape
    assert torch.allclose(one, other, atol=1e-4, rtol=1e-3)


@on_ranks(2)
def test_batches_are_of_one_size_where_ranks_have_different_memory() -> None:
    whole, split = lenses("llama")
    one = patched_residual(whole)
    free = 10**6 if distributed.get_rank() == 0 else 10**12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_bytes", lambda device: free)
        assert close(torch.as_tensor(one), torch.as_tensor(patched_residual(split)))


@on_ranks(2)
def test_inference_mode_reads_and_edits() -> None:
    whole, split = lenses("llama")
    edits = [("blocks.0.attn.hook_pattern", scaled), ("blocks.1.mlp.hook_post", scaled)]
    with torch.inference_mode():
        one, other = (model.run_with_hooks(tokens(), fwd_hooks=edits) for model in (whole, split))
    assert close(one, other)
