"""ERNIE 4.5 with experts, with or without shared ones, behind dense layers."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import BLOCK, GATED_MLP, LLAMA

ERNIE4_5_MOE = replace(
    LLAMA,
    name="ernie4_5_moe",
    classes=("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeModel"),
    block=(
        replace(BLOCK, mlp=MoE("mlp", shared=replace(GATED_MLP, path="shared_experts"))),
        replace(BLOCK, mlp=MoE("mlp")),
        BLOCK,
    ),
)

ARCHITECTURES = (ERNIE4_5_MOE,)
