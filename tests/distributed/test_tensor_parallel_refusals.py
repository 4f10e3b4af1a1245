"""Tensor parallelism: what is refused, and what is told where ranks do different things."""

import copy
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.ranks import on_ranks
from distributed.tensor_parallel import close, lenses, tokens, whole_and_split

import lensbridge
from lensbridge.errors import LensbridgeError, LoadError, ProcessingError, RanksError, WeightError

pytestmark = pytest.mark.ranks


# --- weights -------------------------------------------------------------------------------------


@on_ranks(2)
def test_a_write_is_refused_and_a_read_on_one_rank_is_told() -> None:
    _, split = whole_and_split("llama")
    lens = lensbridge.load(split)
    with torch.no_grad(), pytest.raises(WeightError, match="copy"):
        lens.blocks[0].attn.W_Q[0] = 0.0
    with pytest.raises(RanksError, match=r"read model\.embed_tokens\.weight"):
        lens.W_E if distributed.get_rank() == 0 else lens(tokens())


@on_ranks(2)
def test_weights_are_not_processed() -> None:
    whole, split = lenses("llama")
    with pytest.raises(ProcessingError, match="parts"):
        split.process_weights_(fold_ln=True)
    assert close(whole(tokens()), split(tokens()))


@on_ranks(2)
def test_copies_are_refused() -> None:
    _, split = lenses("llama")
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(LensbridgeError, match="would run the weights of the original"):
            copied(split)


# --- ranks that do different things --------------------------------------------------------------


def hooks_at(name: str) -> Callable[[Any], object]:
    return lambda lens: lens.run_with_hooks(tokens(), fwd_hooks=[(name, lambda value, hook: None)])


def generate_with_hooks(lens: Any) -> object:
    with lens.hooks([("blocks.0.mlp.hook_post", lambda value, hook: None)]):
        return lens.generate(tokens(), max_new_tokens=2, do_sample=False)


def generate(lens: Any) -> object:
    return lens.generate(tokens(), max_new_tokens=2, do_sample=False)


def sample(lens: Any) -> object:
    torch.manual_seed(distributed.get_rank())
    return lens.generate(tokens(), max_new_tokens=8, temperature=5.0)


DIFFERENT: dict[str, tuple[Callable[[Any], object], Callable[[Any], object], str]] = {
    "hooks": (hooks_at("blocks.0.mlp.hook_post"), lambda lens: lens(tokens()), "hook_post"),
    "names": (
        hooks_at("blocks.0.mlp.hook_post"),
        hooks_at("blocks.0.attn.hook_z"),
        "hook_post|hook_z",
    ),
    "cache": (lambda lens: lens.run_with_cache(tokens()), lambda lens: lens(tokens()), "more, #"),
    "input": (lambda lens: lens(tokens()), lambda lens: lens(tokens() + 1), "input_ids"),
    "generate": (generate_with_hooks, generate, "hook_post"),
    "sample": (sample, sample, "input_ids"),
}


@pytest.mark.parametrize("what", DIFFERENT)
@on_ranks(2)
def test_ranks_that_do_different_things_are_told_on_both(what: str) -> None:
    whole, split = lenses("llama")
    first, second, said = DIFFERENT[what]
    with pytest.raises(RanksError, match=said):
        (first if distributed.get_rank() == 0 else second)(split)
    assert close(whole(tokens()), split(tokens()))  # and can go on


@on_ranks(2)
def test_a_rank_that_does_not_come_is_told() -> None:
    _, split = lenses("llama")
    distributed.distributed_c10d._get_default_store().set_timeout(timedelta(seconds=1))
    if distributed.get_rank() == 0:
        with pytest.raises(RanksError, match="rank 1 did not come"):
            hooks_at("blocks.0.mlp.hook_post")(split)


# --- what is refused -----------------------------------------------------------------------------

LAYERS = "model.layers.*"
THREE_HEADS = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3}


def of_plan(family: str, plan: Any, **sizes: Any) -> Any:
    return whole_and_split(family, plan, **sizes)[1]


def by_hand() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    whole, _ = whole_and_split("llama")
    mesh = init_device_mesh("cpu", (2,))
    plan = {"model.layers.0.mlp.up_proj": ColwiseParallel()}
    return parallelize_module(whole, mesh, plan)


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    split = whole_and_split("llama")[1]
    return get_peft_model(split, LoraConfig(target_modules=["q_proj"], r=2))


def expert_parallel() -> Any:
    from transformers.distributed import DistributedConfig

    return whole_and_split("mixtral", DistributedConfig(tp_size=2, ep_size=2))[1]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one key head": (
        lambda: of_plan("llama", "auto", num_key_value_heads=1),
        r"layers.0.self_attn has 1 key/value heads for 2 ranks",
    ),
    "odd heads": (
        lambda: of_plan(
            "llama", "auto", hidden_size=48, num_attention_heads=3, num_key_value_heads=3
        ),
        r"layers.0.self_attn has 3 heads for 2 ranks",
    ),
    "mixture": (lambda: of_plan("mixtral", "auto"), "mlp.experts: style 'moe_tp_experts'"),
    "expert parallel": (expert_parallel, "expert parallel"),
    "sequence parallel": (
        lambda: of_plan("llama", {f"{LAYERS}.input_layernorm": "sequence_parallel"}),
        "input_layernorm: style 'sequence_parallel'",
    ),
    "packed": (
        lambda: of_plan("phi3", {f"{LAYERS}.mlp.gate_up_proj": "packed_colwise"}),
        "gate_up_proj: style 'packed_colwise'",
    ),
    "halves": (
        lambda: of_plan(
            "phi3",
            {f"{LAYERS}.mlp.gate_up_proj": "colwise", f"{LAYERS}.mlp.down_proj": "rowwise"},
        ),
        "gate_up_proj holds several projections side by side",
    ),
    "half a branch": (
        lambda: of_plan("llama", {f"{LAYERS}.mlp.up_proj": "colwise_gather_output"}),
        "up_proj is whole, and other projections of its branch are split",
    ),
    "flat norm": (
        lambda: of_plan(
            "olmo2",
            {
                **{f"{LAYERS}.self_attn.{one}_proj": "colwise" for one in "qkv"},
                f"{LAYERS}.self_attn.o_proj": "rowwise",
            },
        ),
        "is a norm over heads that are on different ranks",
    ),
    "unknown place": (
        lambda: of_plan("llama", {"lm_head": "colwise"}),
        "lm_head has style 'colwise', and nothing says what its pieces are",
    ),
    "adapter": (adapted, r"q_proj: style 'colwise' on a peft\.tuners\.lora"),
    "by hand": (by_hand, "up_proj.weight: held as"),
}


@pytest.mark.parametrize("case", REFUSED)
@on_ranks(2)
def test_what_cannot_be_read_is_refused_by_name(case: str) -> None:
    make, said = REFUSED[case]
    with pytest.raises(LoadError, match=said) as raised:
        lensbridge.load(make())
    assert "replicate" in str(raised.value)
