"""Qwen 3 with experts; some layers may be dense. OLMoE norms all queries and all keys together."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import BLOCK, LLAMA
from lensbridge_adapters.qwen3 import NORMED_HEADS

DENSE_BLOCK = replace(BLOCK, attn=NORMED_HEADS)

QWEN3_MOE = replace(
    LLAMA,
    name="qwen3_moe",
    classes=("Qwen3MoeForCausalLM", "Qwen3MoeModel", "MellumForCausalLM", "MellumModel"),
    block=(replace(DENSE_BLOCK, mlp=MoE("mlp")), DENSE_BLOCK),
)

OLMOE = replace(
    LLAMA,
    name="olmoe",
    classes=("OlmoeForCausalLM", "OlmoeModel"),
    block=replace(
        BLOCK, attn=replace(NORMED_HEADS, qk_norm_axes="flat", clip="clip_qkv"), mlp=MoE("mlp")
    ),
)

ARCHITECTURES = (QWEN3_MOE, OLMOE)
