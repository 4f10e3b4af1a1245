"""Zaya: convolved queries and keys, experts, and sums in which both sides are moved and scaled."""

from dataclasses import replace
from typing import Any

from lensbridge.spec import Attention, Block, KernelQKV, MoE
from lensbridge_adapters.llama import LLAMA, NORMS


def summed(module: str) -> dict[str, Any]:
    """How a module adds a branch to the stream: both are moved, then multiplied by channel."""
    branch, stream = f"{module}.hidden_states", f"{module}.residual"
    return {
        "scale": f"{branch}_scale",
        "skip_scale": f"{stream}_scale",
        "sum_bias": f"{branch}_bias * {branch}_scale + {stream}_bias * {stream}_scale",
    }


ZAYA = replace(
    LLAMA,
    name="zaya",
    classes=("ZayaForCausalLM", "ZayaModel"),
    embed_mixed=True,
    block=Block(
        norms=NORMS,
        attn=Attention(
            "self_attn",
            qkv=KernelQKV(),
            out="o_proj",
            rotary=True,
            **summed("post_attention_residual_scale"),
        ),
        mlp=MoE("mlp", **summed("post_mlp_residual_scale")),
    ),
)

ARCHITECTURES = (ZAYA,)
