"""Tiny models on two ranks, beside the same models on one."""

import tempfile
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import lensbridge

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 12},
    "gpt_neox": {},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "olmo2": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 2},
}
"""What a family needs beside the sizes that all have."""


def config_of(family: str, **more: Any) -> Any:
    """The config of a tiny model."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    return AutoConfig.for_model(family, **{**sizes, **SIZES[family], **more})


def whole_and_split(family: str, plan: Any = "auto", **more: Any) -> tuple[Any, Any]:
    """The same model as HuggingFace loads it on one rank, and over all ranks."""
    from transformers.distributed import DistributedConfig

    kernel = more.pop("attn_implementation", None)
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config_of(family, **more))
    for parameter in built.parameters():  # biases and gains that matter
        torch.nn.init.normal_(parameter, std=0.2)
    with tempfile.TemporaryDirectory() as mine:
        folder = _of_first(mine)
        built.save_pretrained(folder)  # transformers saves on the first rank only
        distributed.barrier()
        whole = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel)
        split = AutoModelForCausalLM.from_pretrained(
            folder,
            distributed_config=plan
            if isinstance(plan, DistributedConfig)
            else DistributedConfig(tp_size=distributed.get_world_size(), tp_plan=plan),
            attn_implementation=kernel,
        )
        distributed.barrier()
    return whole.eval(), split.eval()


def _of_first(value: str) -> str:
    """The value that the first rank has."""
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def lenses(family: str, plan: Any = "auto", **more: Any) -> tuple[Any, Any]:
    """Two lenses: on the model on one rank, and on the model over all ranks."""
    whole, split = whole_and_split(family, plan, **more)
    return lensbridge.load(whole), lensbridge.load(split)


def tokens() -> Tensor:
    """Two rows of ids."""
    return torch.arange(12).reshape(2, 6).remainder(64)


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to the order of sums."""
    return one.shape == other.shape and torch.allclose(one, other, atol=2e-5, rtol=1e-4)
