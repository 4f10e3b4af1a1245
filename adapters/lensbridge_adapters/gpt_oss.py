"""gpt-oss: experts, and per head a sink that takes attention to nowhere. Flint norms heads too."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA

CLAMPED_SWIGLU = "swigluoai"
"""swish(alpha * gate) * (up + 1), both bounded; the config says "silu", which it is not."""

SINKS = replace(ATTENTION, sinks="sinks")
NORMED_HEADS = replace(SINKS, q_norm="q_norm", k_norm="k_norm")
DENSE_BLOCK = replace(BLOCK, attn=NORMED_HEADS)

GPT_OSS = replace(
    LLAMA,
    name="gpt_oss",
    classes=("GptOssForCausalLM", "GptOssModel"),
    block=replace(BLOCK, attn=SINKS, mlp=MoE("mlp", router="router", act=CLAMPED_SWIGLU)),
)

FLINT = replace(
    LLAMA,
    name="flint",
    classes=("FlintForCausalLM", "FlintModel"),
    block=(
        replace(DENSE_BLOCK, mlp=MoE("mlp", shared=replace(GATED_MLP, path="shared_expert"))),
        DENSE_BLOCK,
    ),
)

ARCHITECTURES = (GPT_OSS, FLINT)
