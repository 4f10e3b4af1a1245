"""Qwen 2 with experts, one of them shared behind a gate of its own; some layers may be dense."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import BLOCK, GATED_MLP, LLAMA

QWEN2_MOE = replace(
    LLAMA,
    name="qwen2_moe",
    classes=("Qwen2MoeForCausalLM", "Qwen2MoeModel"),
    block=(
        replace(BLOCK, mlp=MoE("mlp", shared=replace(GATED_MLP, path="shared_expert"))),
        BLOCK,
    ),
)

ARCHITECTURES = (QWEN2_MOE,)
